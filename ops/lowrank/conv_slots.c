/* SPDX-License-Identifier: Apache-2.0
 * conv_slots.c - where the rows of a strip lie. */
#include "lowrank/conv_slots.h"

#include "lowrank/conv_strips.h"

/* Also of a negative number. */
static int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

static int64_t residue_of(const struct lath_conv_rows *stage, int64_t tap) { return tap * stage->dilation % stage->stride; }
static int64_t shift_of(const struct lath_conv_rows *stage, int64_t tap) { return tap * stage->dilation / stage->stride; }

/* Slots of the phase to which `tap` belongs, if it is the first tap of that phase; else 0. */
static int64_t slots_opened_by(const struct lath_conv_rows *stage, int64_t tap, int64_t rows) {
  int64_t shift = 0;
  for (int64_t i = 0; i < stage->taps; i++) {
    if (residue_of(stage, i) != residue_of(stage, tap)) continue;
    if (i < tap) return 0;
    shift = lath_larger(shift, shift_of(stage, i));
  }
  return rows + shift;
}

void lath_slots_take(struct lath_slots *s, const struct lath_conv_rows *stage, int64_t rows, struct lath_arena *arena) {
  *s = (struct lath_slots){.stage = stage, .rows = rows};
  for (int64_t i = 0; i < stage->taps; i++) s->total += slots_opened_by(stage, i, rows);
  s->residue = lath_take_integers(arena, stage->taps);
  s->base = lath_take_integers(arena, stage->taps);
  s->count = lath_take_integers(arena, stage->taps);
  s->tap = lath_take_integers(arena, stage->taps);
}

void lath_slots_fill(struct lath_slots *s) {
  int64_t next = 0;
  for (int64_t i = 0; i < s->stage->taps; i++) {
    const int64_t count = slots_opened_by(s->stage, i, s->rows);
    if (count > 0) {
      s->residue[s->phases] = residue_of(s->stage, i);
      s->base[s->phases] = next;
      s->count[s->phases++] = count;
      next += count;
    }
    for (int64_t f = 0; f < s->phases; f++)
      if (s->residue[f] == residue_of(s->stage, i)) s->tap[i] = s->base[f] + shift_of(s->stage, i);
  }
}

struct lath_run lath_slots_inside(const struct lath_slots *s, int64_t phase, int64_t h0, int64_t from, int64_t count) {
  const struct lath_conv_rows *stage = s->stage;
  /* Slot k of the phase holds row start + k stride of the input without its padding. */
  const int64_t start = s->residue[phase] + stage->stride * h0 - stage->pad;
  const int64_t low = lath_smaller(lath_larger(ceil_div(-start, stage->stride), from), from + count);
  const int64_t high = lath_smaller(lath_larger(ceil_div(stage->in - start, stage->stride), low), from + count);
  return (struct lath_run){
      .slot = s->base[phase] + low, .count = high - low, .first = start + low * stage->stride, .step = stage->stride};
}
