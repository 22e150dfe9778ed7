/* SPDX-License-Identifier: Apache-2.0
 *
 * pages.h - large blocks of main memory in large pages.
 *
 * The allocator behind torch gets a large block from the system at each call and gives it back after it. Then a page fault for every 4 KiB
 * takes longer than what is computed into it: half a millisecond per megabyte, where a kernel that keeps up with memory takes a tenth.
 */
#ifndef LATH_PAGES_H
#define LATH_PAGES_H

#include <stddef.h>

/* Advises the system to back a block that nothing was written to yet with huge pages. A hint: where the system has none, or for a
 * small block, nothing happens. */
void pages_advise(void *data, size_t bytes);

#endif
