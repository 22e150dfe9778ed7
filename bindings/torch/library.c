/* SPDX-License-Identifier: Apache-2.0
 *
 * library.c - registers the operators of operators.h when the object is loaded.
 *
 * All or nothing: a torch that is too old, or a second copy of the library in the process, gets one line on stderr and no
 * operator. Nothing aborts. Handles of a successful registration are kept for the life of the process, for deleting one would
 * take its operators away.
 */
#include <stdio.h>
#include <string.h>

#include "codes.h"
#include "kernels.h"

static const struct {
  const char *name, *schema, *key;
  ShimKernel entry;
} operators[] = {
#define OPERATOR(name, schema, key, entry) {"lath::" #name, #name schema, key, entry},
    LATH_OPERATORS(OPERATOR)
#undef OPERATOR
};

enum { NUM_OPERATORS = sizeof operators / sizeof *operators };

/* Dispatch keys and whose entries they get. The kernels refuse what a CPU key with a special layout or dtype brings, but in
 * their own words: without an entry there, torch answers with a list of every backend that it knows. */
static const struct {
  const char *key, *entries_of;
} keys[] = {
    {"CPU", "CPU"},          {"SparseCPU", "CPU"}, {"SparseCsrCPU", "CPU"},
    {"QuantizedCPU", "CPU"}, {"MkldnnCPU", "CPU"}, {"CompositeExplicitAutograd", "CompositeExplicitAutograd"},
};

enum { NUM_KEYS = sizeof keys / sizeof *keys };

static bool complain(const char *what, const char *subject) {
  fprintf(stderr, "lath: %s%s; this copy registered no operator\n", what, subject);
  return false;
}

static bool torch_is_recent(void) {
  const uint64_t version = aoti_torch_abi_version ? aoti_torch_abi_version() : 0;
  if (version >= SHIM_TARGET_VERSION) return true;
  char found[32] = "older than 2.9";
  if (version) snprintf(found, sizeof found, "%d.%d", (int)(version >> 56), (int)(version >> 48 & 0xff));
  fprintf(stderr, "lath: found torch %s, expected %d.%d or newer (pip install --upgrade torch); no operator was registered\n",
          found, SHIM_TARGET_MAJOR, SHIM_TARGET_MINOR);
  return false;
}

/* The names are weak references, so one that torch has dropped is null instead of stopping the load without explanation. */
static bool torch_is_complete(void) {
#define CHECK(type, name, parameters) \
  if (!name) return complain("this torch lacks the function ", #name);
  SHIM_FUNCTIONS_STABLE(CHECK)
#undef CHECK
  return true;
}

static bool define_operators(TorchLibraryHandle library) {
  for (int i = 0; i < NUM_OPERATORS; i++)
    if (aoti_torch_library_def(library, operators[i].schema) != 0)
      return complain("another copy of lath is loaded already and stays in use, or torch refused the schema of ",
                      operators[i].name);
  return true;
}

static bool register_entries(TorchLibraryHandle library, const char *entries_of) {
  for (int i = 0; i < NUM_OPERATORS; i++)
    if (strcmp(operators[i].key, entries_of) == 0 &&
        torch_library_impl(library, operators[i].name, operators[i].entry, SHIM_TARGET_VERSION) != 0)
      return complain("torch refused the kernel of ", operators[i].name);
  return true;
}

static bool register_library(TorchLibraryHandle *fragment, TorchLibraryHandle impl[NUM_KEYS]) {
  if (aoti_torch_library_init_fragment("lath", __FILE__, __LINE__, fragment) != 0)
    return complain("torch refused the namespace ", "lath");
  if (!define_operators(*fragment)) return false;
  for (int i = 0; i < NUM_KEYS; i++) {
    if (aoti_torch_library_init_impl("lath", keys[i].key, __FILE__, __LINE__, &impl[i]) != 0)
      return complain("torch refused the dispatch key ", keys[i].key);
    if (!register_entries(impl[i], keys[i].entries_of)) return false;
  }
  return true;
}

__attribute__((constructor)) static void load(void) {
  TorchLibraryHandle fragment = NULL, impl[NUM_KEYS] = {NULL};
  if (!torch_is_recent() || !torch_is_complete()) return;
  codes_load();
  if (register_library(&fragment, impl)) return;
  for (int i = 0; i < NUM_KEYS; i++)
    if (impl[i]) aoti_torch_delete_library_object(impl[i]);
  if (fragment) aoti_torch_delete_library_object(fragment);
}
