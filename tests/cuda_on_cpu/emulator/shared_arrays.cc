/* SPDX-License-Identifier: Apache-2.0
 *
 * shared_arrays.cc - where the program keeps the __shared__ arrays of all its kernels: in one section, found by its name.
 *
 * The section is .noinit (language.h says why), for which the linker has no symbols; so the section headers of the running
 * program are read once.
 */
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

static const char section_name[] = ".noinit";

/* How far the program was moved from the addresses in its file. The first object is the program itself. */
static int note_bias(struct dl_phdr_info *info, size_t, void *bias) {
  *(uintptr_t *)bias = info->dlpi_addr;
  return 1;
}

static struct emulator_range search(const unsigned char *file) {
  const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
  const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(file + header->e_shoff);
  const char *names = (const char *)file + sections[header->e_shstrndx].sh_offset;
  uintptr_t bias = 0;
  dl_iterate_phdr(note_bias, &bias);
  for (int i = 0; i < header->e_shnum; i++)
    if (!strcmp(names + sections[i].sh_name, section_name))
      return {(unsigned char *)(bias + sections[i].sh_addr), sections[i].sh_size};
  return {nullptr, 0};
}

struct emulator_range emulator_find_shared_arrays(void) {
  struct stat status;
  const int descriptor = open("/proc/self/exe", O_RDONLY);
  if (descriptor < 0 || fstat(descriptor, &status)) abort();
  void *file = mmap(nullptr, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (file == MAP_FAILED) abort();
  const struct emulator_range range = search((const unsigned char *)file);
  munmap(file, (size_t)status.st_size);
  close(descriptor);
  return range;
}
