/* SPDX-License-Identifier: Apache-2.0
 *
 * library.c - registers what the tables of library.h list, when the object is loaded.
 *
 * All or nothing: a torch that is too old, or a second copy of the library in the process, gets one line on stderr and no
 * operator. Nothing aborts. Handles of a successful registration are kept for the life of the process, for deleting one would
 * take its operators away.
 */
#include "library.h"

#include <stdio.h>
#include <string.h>

#include "codes.h"

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
  const char *missing = library.missing();
  return !missing || complain("this torch lacks the function ", missing);
}

static bool define_operators(TorchLibraryHandle fragment) {
  for (int i = 0; i < library.num_operators; i++) {
    const struct registration *o = &library.operators[i];
    if (o->schema && aoti_torch_library_def(fragment, o->schema) != 0)
      return complain("another copy of lath is loaded already and stays in use, or torch refused the schema of ", o->name);
  }
  return true;
}

static bool register_entries(TorchLibraryHandle impl, const char *entries_of) {
  for (int i = 0; i < library.num_operators; i++) {
    const struct registration *o = &library.operators[i];
    if (strcmp(o->key, entries_of) == 0 && torch_library_impl(impl, o->name, o->entry, SHIM_TARGET_VERSION) != 0)
      return complain("torch refused the kernel of ", o->name);
  }
  return true;
}

static bool register_library(TorchLibraryHandle *fragment, TorchLibraryHandle impl[LIBRARY_MAX_KEYS]) {
  if (aoti_torch_library_init_fragment("lath", __FILE__, __LINE__, fragment) != 0)
    return complain("torch refused the namespace ", "lath");
  if (!define_operators(*fragment)) return false;
  for (int i = 0; i < library.num_keys; i++) {
    if (aoti_torch_library_init_impl("lath", library.keys[i].key, __FILE__, __LINE__, &impl[i]) != 0)
      return complain("torch refused the dispatch key ", library.keys[i].key);
    if (!register_entries(impl[i], library.keys[i].entries_of)) return false;
  }
  return true;
}

__attribute__((constructor)) static void load(void) {
  TorchLibraryHandle fragment = NULL, impl[LIBRARY_MAX_KEYS] = {NULL};
  if (!torch_is_recent() || !torch_is_complete()) return;
  codes_load();
  if (register_library(&fragment, impl)) return;
  for (int i = 0; i < LIBRARY_MAX_KEYS; i++)
    if (impl[i]) aoti_torch_delete_library_object(impl[i]);
  if (fragment) aoti_torch_delete_library_object(fragment);
}
