/* SPDX-License-Identifier: Apache-2.0
 * pages.c - large blocks of main memory in large pages. */
#define _DEFAULT_SOURCE /* madvise */
#include "pages.h"

#include <stdint.h>
#include <sys/mman.h>

#define LEAST_BYTES ((size_t)4 << 20)  /* two huge pages of x86 */
#define ALIGNMENT ((uintptr_t)1 << 16) /* of the largest plain page; the system finds the huge ones inside by itself */

void pages_advise(void *data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < LEAST_BYTES) return;
  const uintptr_t begin = ((uintptr_t)data + ALIGNMENT - 1) & ~(ALIGNMENT - 1),
                  end = ((uintptr_t)data + bytes) & ~(ALIGNMENT - 1);
  (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* refused by a system that is built without them */
#else
  (void)data, (void)bytes;
#endif
}
