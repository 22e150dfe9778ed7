/* SPDX-License-Identifier: Apache-2.0
 * conv_slots.h - where the rows of a strip lie, so that every vertical tap is a fixed distance.
 *
 * A stage computes output rows h0 .. h0 + rows - 1, and tap i of output row h meets row t = h stride + i dilation of its padded input.
 * Rows of one residue t mod stride are neighbours in memory, residue after residue: then consecutive output rows meet consecutive
 * slots at every tap, and one vector may hold pixels of several rows. Row t = residue + stride m lies in slot
 * base(residue) + m - h0. */
#ifndef LATH_LOWRANK_CONV_SLOTS_H
#define LATH_LOWRANK_CONV_SLOTS_H

#include "core/arena.h"
#include "lowrank/conv.h"

struct lath_slots {
  const struct lath_conv_rows *stage;
  int64_t rows;                    /* output rows of a strip */
  int64_t phases, total;           /* residues in use; slots */
  int64_t *residue, *base, *count; /* per phase; slots of a phase, `rows` and some more */
  int64_t *tap;                    /* per tap: the slot that output row h0 meets */
};

/* What the lists of a stage take from the workspace; then their contents. */
void lath_slots_take(struct lath_slots *slots, const struct lath_conv_rows *stage, int64_t rows, struct lath_arena *arena);
void lath_slots_fill(struct lath_slots *slots);

/* A run of slots with neighbouring rows. */
struct lath_run {
  int64_t slot, count; /* slots [slot, slot + count) of the strip ... */
  int64_t first, step; /* ... hold rows first, first + step, ... of the input: all of them exist */
};

/* Of slots [from, from + count) of a phase in the strip at h0: those whose rows exist. The ones before and behind are padding. */
struct lath_run lath_slots_inside(const struct lath_slots *slots, int64_t phase, int64_t h0, int64_t from, int64_t count);

#endif
