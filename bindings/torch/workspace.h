/* SPDX-License-Identifier: Apache-2.0
 *
 * workspace.h - scratch memory for one call, kept for the next.
 *
 * Memory fresh from the system costs a page fault for every 4 KiB: 2 ms for the panels of two 4096 x 1024 factors, a tenth of the call.
 * So one block, the last one given back, waits for the next call; torch does the same for its own products. What lies in it is never
 * read: no result, and no weight, outlives a call.
 */
#ifndef LATH_WORKSPACE_H
#define LATH_WORKSPACE_H

#include <stddef.h>

/* At least `bytes` bytes, aligned to 64; NULL: out of memory. */
void *workspace_take(size_t bytes);

/* Gives back what workspace_take() returned, or NULL. */
void workspace_give(void *workspace);

#endif
