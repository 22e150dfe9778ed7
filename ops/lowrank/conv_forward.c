/* SPDX-License-Identifier: Apache-2.0
 * conv_forward.c - both convolutions of a low-rank layer, strip by strip.
 *
 * A unit of work is a band of output rows of one image, or some whole images where they are small. In strips of rows, the first stage
 * writes the intermediate z into a ring that stays in cache, and the second stage reads it at once; rows that the next strip needs
 * again move to its front. Weights are the broadcast side of the products, read where they lie, and pixels fill the vectors: no rank
 * is padded, and y is written in rows. */
#include <string.h>

#include "core/check.h"
#include "core/convert.h"
#include "core/host.h"
#include "gemm/gemm.h"
#include "gemm/images.h"
#include "lowrank/conv_forward.h"
#include "lowrank/conv_linear.h"
#include "lowrank/conv_slots.h"
#include "lowrank/conv_strips.h"

/* Strips of the pointwise form copy the rows between them twice: they are longer. */
#define WINDOW_PIXELS 512
#define BLOCK_K 192 /* taps of a block of channels: what their copies give to one product stays in L1 */

struct forward {
  const struct lath_lowrank_conv2d *a;
  const struct lath_kernels *kernels;
  struct lath_conv_shape s;
  float *p;                           /* where z is kept, or NULL */
  int only_first;                     /* stage: y is not computed */
  int64_t workers, images, bands;     /* images side by side in a unit; units per image */
  int in_place;                       /* no copies: see reads_in_place */
  int64_t block;                      /* channels whose copies are made at a time */
  int64_t pitch;                      /* floats between slots: one row of each image */
  int64_t x_plane, z_plane;           /* floats between planes of the copies and of z */
  struct lath_slots x_slots, z_slots; /* the first stage reads x, the second z */
  struct lath_columns columns;        /* of the copies */
  /* Rows as long as whole panels need no copy per horizontal tap: one padded copy, in which every panel begins in a row of its own and
   * a tap is a shift. Shorter rows would leave vectors half empty. */
  int shared;
  int64_t x_pitch, x_taps;          /* floats between slots of the copies; copies of a channel */
  int64_t *x_starts;                /* of the panels, or NULL */
  int64_t *x_rows, *z_rows;         /* lists of the rows of B for both products */
  float *v, *u, *inner_bias, *bias; /* float copies of weights, for other types than float */
  struct {
    const float *v, *u, *inner_bias, *bias;
  } weights;
  int64_t s_v;                              /* floats between rows of v */
  float *copies, *z, *planes, *y, *scratch; /* per worker */
  int64_t copies_size, z_size, planes_size, y_size, scratch_size;
};

/* ---- sizes --------------------------------------------------------------------------------------------------------------------------- */

/* Images whose pixels a 1 x 1 convolution reads as they lie. */
static int reads_in_place(const struct forward *f) {
  const struct lath_lowrank_conv2d *a = f->a;
  return lath_conv_is_1x1(a) && f->images == 1 && lath_images_are_planes(a->dtype, &a->x, a->width);
}

static int writes_in_place(const struct forward *f) {
  return f->images == 1 && lath_images_are_planes(f->a->dtype, &f->a->y, f->s.width);
}

static void set_strips(struct forward *f, const struct lath_host *host, int64_t macs) {
  const struct lath_lowrank_conv2d *a = f->a;
  f->workers = lath_host_workers(host, macs);
  f->images = lath_smaller(lath_images_side_by_side(a->batch, f->s.out_height * f->s.width, LATH_FEW_PIXELS),
                           lath_larger(1, lath_ceil_div(a->batch, f->workers)));
  const int64_t units = lath_ceil_div(a->batch, f->images);
  f->bands = units % f->workers == 0 || units >= 4 * f->workers ? 1 : lath_smaller(f->s.out_height, 4 * f->workers);
  f->pitch = f->images * f->s.width;
}

/* Floats of a panel that is two vectors wide, as those of an even number of vectors are. */
static int64_t panel_width(const struct forward *f) { return 2 * f->kernels->lanes; }

static void set_copies(struct forward *f) {
  const struct lath_lowrank_conv2d *a = f->a;
  f->columns = lath_conv_columns(a, &f->s);
  f->shared = f->images == 1 && a->stride_w == 1 && a->kernel_w > 1 && f->s.width % panel_width(f) == 0;
  f->x_pitch = f->pitch;
  f->x_taps = a->kernel_w;
  if (!f->shared) return;
  f->columns.taps = 1;
  f->columns.out = f->x_pitch = f->s.width + (a->kernel_w - 1) * a->dilation_w;
  f->x_taps = 1;
}

static void take_lists(struct forward *f, struct lath_arena *arena, int64_t rows) {
  const int separable = f->a->form == LATH_SEPARABLE;
  lath_slots_take(&f->z_slots, &f->s.second, rows, arena);
  lath_slots_take(&f->x_slots, &f->s.first, separable ? f->z_slots.total : rows, arena);
  if (f->shared) f->x_starts = lath_take_integers(arena, f->x_slots.total * f->pitch / panel_width(f));
  if (!f->shared) lath_columns_take(&f->columns, f->kernels, f->x_slots.total, arena);
  f->x_rows = lath_take_integers(arena, f->block * f->s.first.taps * f->a->kernel_w);
  f->z_rows = lath_take_integers(arena, f->s.rank * f->s.second.taps);
}

/* v is read along its rows, as it lies unless its type or its row length forbids it. */
static void take_weights(struct forward *f, struct lath_arena *arena) {
  const struct lath_lowrank_conv2d *a = f->a;
  const int64_t length = f->s.in * f->s.first.taps * a->kernel_w;
  f->s_v = lath_row_stride(length);
  if (a->dtype != LATH_F32 || f->s_v > length) f->v = lath_take(arena, a->groups * f->s.rank, f->s_v);
  if (a->dtype == LATH_F32) return;
  f->u = lath_take(arena, a->out, f->s.rank * f->s.second.taps);
  f->inner_bias = lath_take(arena, a->groups, f->s.rank);
  f->bias = lath_take(arena, 1, a->out);
}

static void take_worker_buffers(struct forward *f, struct lath_arena *arena, int64_t rows) {
  const struct lath_lowrank_conv2d *a = f->a;
  f->x_plane = lath_plane_size(f->x_slots.total * f->x_pitch);
  f->z_plane = lath_plane_size(f->z_slots.total * f->pitch);
  f->copies_size = f->in_place ? 0 : lath_with_slack(f->kernels, f->block * f->x_taps * f->x_plane);
  f->z_size = lath_with_slack(f->kernels, f->s.rank * f->z_plane);
  f->planes_size = lath_planes_copy(a->dtype, &a->x, f->block, f->x_slots.total, a->width);
  f->y_size = f->only_first || writes_in_place(f) ? 0 : f->s.out * rows * f->pitch;
  f->scratch_size = lath_product_scratch(f->kernels);
  f->copies = lath_take(arena, f->workers, f->copies_size);
  f->z = lath_take(arena, f->workers, f->z_size);
  f->planes = lath_take(arena, f->workers, f->planes_size);
  f->y = lath_take(arena, f->workers, f->y_size);
  f->scratch = lath_take(arena, f->workers, f->scratch_size);
}

static void prepare(struct forward *f, const struct lath_lowrank_conv2d *a, const struct lath_host *host, int64_t macs,
                    struct lath_arena *arena) {
  f->a = a;
  f->kernels = lath_kernels();
  set_strips(f, host, macs);
  f->in_place = reads_in_place(f);
  const int64_t taps = f->s.first.taps * a->kernel_w, blocks = lath_larger(1, lath_ceil_div(f->s.in * taps, BLOCK_K));
  f->block = lath_ceil_div(f->s.in, lath_smaller(blocks, lath_larger(f->s.in, 1)));
  if (a->x.s_c == 1) f->block = lath_smaller(f->s.in, lath_ceil_div(f->block, 16) * 16); /* channels are turned 16 at a time */
  set_copies(f);
  const int64_t rows = lath_strip_rows(lath_ceil_div(f->s.out_height, f->bands), f->pitch,
                                       a->form == LATH_POINTWISE ? WINDOW_PIXELS : LATH_STRIP_PIXELS);
  take_lists(f, arena, rows);
  take_weights(f, arena);
  take_worker_buffers(f, arena, rows);
}

static void fill_lists(struct forward *f) {
  const int64_t kernel_w = f->a->kernel_w, first = f->s.first.taps, second = f->s.second.taps;
  lath_slots_fill(&f->x_slots);
  lath_slots_fill(&f->z_slots);
  lath_columns_fill(&f->columns, f->kernels);
  for (int64_t c = 0; c < f->block; c++)
    for (int64_t i = 0; i < first; i++)
      for (int64_t j = 0; j < kernel_w; j++)
        f->x_rows[(c * first + i) * kernel_w + j] = f->shared
                                                        ? c * f->x_plane + f->x_slots.tap[i] * f->x_pitch + j * f->a->dilation_w
                                                        : (c * kernel_w + j) * f->x_plane + f->x_slots.tap[i] * f->pitch;
  for (int64_t k = 0; f->shared && k < f->x_slots.total * f->pitch / panel_width(f); k++) {
    const int64_t pixel = k * panel_width(f);
    f->x_starts[k] = pixel / f->s.width * f->x_pitch + pixel % f->s.width;
  }
  for (int64_t q = 0; q < f->s.rank; q++)
    for (int64_t i = 0; i < second; i++) f->z_rows[q * second + i] = q * f->z_plane + f->z_slots.tap[i] * f->pitch;
}

/* ---- one strip ------------------------------------------------------------------------------------------------------------------------ */

struct strip {
  const struct forward *f;
  int64_t group;
  int64_t n, images;             /* images n .. n + images - 1 */
  int64_t h, rows;               /* output rows */
  int64_t carried;               /* 1: z holds what the strip above has left */
  int64_t own, own_end;          /* rows of z that this band saves */
  int64_t padded_h, padded_rows; /* the strip whose padding the copies hold */
  float *copies, *z, *planes, *y, *scratch;
};

/* From the rows of this block to those that are copied next: of the next channels, or of the first ones in the next strip. They are on
 * their way while this block is multiplied. */
static int64_t rows_ahead(const struct strip *t, const struct lath_run *run, int64_t c, int64_t channels) {
  const struct lath_images *x = &t->f->a->x;
  return c + channels < t->f->s.in ? channels * x->s_c : run->count * run->step * x->s_h - c * x->s_c;
}

/* Channels c .. c + channels - 1 of the rows of a run, one copy per horizontal tap, from `slot` on. */
static void spread_run(const struct strip *t, const struct lath_run *run, int64_t c, int64_t channels, int64_t slot) {
  const struct forward *f = t->f;
  const struct lath_part part = {.n = t->n,
                                 .channel = t->group * f->s.in + c,
                                 .channels = channels,
                                 .first_row = run->first,
                                 .rows = run->count,
                                 .step = run->step,
                                 .width = f->a->width};
  const struct lath_copies to = {
      .data = t->copies + slot * f->x_pitch, .s_c = f->x_taps * f->x_plane, .s_tap = f->x_plane, .s_h = f->x_pitch};
  lath_load_images(f->kernels, f->a->dtype, &f->a->x, &part, t->images, &f->columns, rows_ahead(t, run, c, channels), t->planes,
                   &to);
}

/* ---- the intermediate, for the backward ---------------------------------------------------------------------------------------------- */

static float *row_of_p(const struct strip *t, int64_t image, int64_t q, int64_t row) {
  const struct forward *f = t->f;
  const int64_t plane = ((t->n + image) * f->a->groups + t->group) * f->s.rank + q;
  return f->p + (plane * f->s.p_height + row) * f->s.width;
}

/* Rows of z that lie in the slots of a run; row k of the run is row first + k step of the intermediate. Bands overlap: each saves its
 * own rows. */
static void save_run(const struct strip *t, const struct lath_run *run) {
  const struct forward *f = t->f;
  if (!f->p) return;
  for (int64_t k = 0; k < run->count; k++) {
    const int64_t row = run->first + k * run->step;
    if (row < t->own || row >= t->own_end || !lath_conv_row_is_met(&f->s.second, row)) continue;
    for (int64_t q = 0; q < f->s.rank; q++)
      for (int64_t m = 0; m < t->images; m++)
        memcpy(row_of_p(t, m, q, row), t->z + q * f->z_plane + (run->slot + k) * f->pitch + m * f->s.width,
               (size_t)f->s.width * sizeof(float));
  }
}

/* Rows that no window meets are not computed: a stride longer than the kernel skips them. */
static void save_unmet_rows(const struct strip *t) {
  const struct forward *f = t->f;
  if (!f->p) return;
  for (int64_t row = t->own; row < t->own_end; row++) {
    if (lath_conv_row_is_met(&f->s.second, row)) continue;
    for (int64_t q = 0; q < f->s.rank; q++)
      for (int64_t m = 0; m < t->images; m++) memset(row_of_p(t, m, q, row), 0, (size_t)f->s.width * sizeof(float));
  }
}

/* ---- stages ---------------------------------------------------------------------------------------------------------------------------- */

/* z (rank, pixels) += v (rank, columns from k on) b, or the first part of that sum. */
static void multiply_v(const struct strip *t, int64_t k, const struct lath_panels *b, float *z) {
  const struct forward *f = t->f;
  const int64_t row = t->group * f->s.rank;
  const struct lath_product product = {.m = f->s.rank,
                                       .a = f->weights.v + row * f->s_v + k,
                                       .s_a = f->s_v,
                                       .b = b,
                                       .start = k > 0 ? LATH_START_C : LATH_START_ROWS,
                                       .bias = f->weights.inner_bias ? f->weights.inner_bias + row : NULL,
                                       .c = z,
                                       .s_c = f->z_plane,
                                       .scratch = t->scratch};
  lath_multiply(f->kernels, &product);
}

/* 1 x 1: the channels of x are the rows of B as they lie, block by block. A block is first called into L2 as a stream: the product
 * visits it in short pieces of many rows, which would wait for memory one by one. */
static void multiply_in_place(const struct strip *t, int64_t h, int64_t rows, float *z) {
  const struct forward *f = t->f;
  const struct lath_images *x = &f->a->x;
  const int64_t pixels = rows * f->pitch;
  const float *from = (const float *)x->data + t->n * x->s_n + t->group * f->s.in * x->s_c + h * x->s_h;
  for (int64_t c = 0; c < f->s.in; c += LATH_BLOCK_CHANNELS) {
    const int64_t channels = lath_smaller(LATH_BLOCK_CHANNELS, f->s.in - c);
    lath_fetch_rows(channels, pixels, from + c * x->s_c, x->s_c);
    const struct lath_panels b = lath_panels_in_place(f->kernels, pixels, channels, from + c * x->s_c, x->s_c);
    multiply_v(t, c, &b, z);
  }
}

/* The same with the copies of some channels. */
static void multiply_copies(const struct strip *t, int64_t c, int64_t channels, int64_t pixels, float *z) {
  const struct forward *f = t->f;
  const int64_t taps = f->s.first.taps * f->a->kernel_w;
  struct lath_panels b = lath_panels_listed(f->kernels, pixels, channels * taps, t->copies, f->x_rows);
  b.starts = f->x_starts;
  multiply_v(t, c * taps, &b, z);
}

/* Slots of a strip whose rows do not exist. What is read next leaves them alone: images of one strip are padded once. */
static void pad_copies(struct strip *t) {
  const struct forward *f = t->f;
  const struct lath_slots *slots = &f->x_slots;
  if (t->padded_h == t->h && t->padded_rows == t->rows) return;
  t->padded_h = t->h, t->padded_rows = t->rows;
  for (int64_t p = 0; p < slots->phases; p++) {
    const int64_t begin = slots->base[p], end = begin + slots->count[p] - (slots->rows - t->rows);
    const struct lath_run run = lath_slots_inside(slots, p, t->h, 0, end - begin);
    const int64_t planes = f->block * f->x_taps;
    lath_zero_slots(t->copies, planes, f->x_plane, f->x_pitch, begin, run.slot - begin);
    lath_zero_slots(t->copies, planes, f->x_plane, f->x_pitch, run.slot + run.count, end - run.slot - run.count);
  }
}

/* Pointwise: the vertical taps read the copies, which need all rows that the windows of the strip meet. */
static void first_stage_windows(struct strip *t) {
  const struct forward *f = t->f;
  const struct lath_slots *slots = &f->x_slots;
  pad_copies(t);
  for (int64_t c = 0; c < f->s.in; c += f->block) {
    const int64_t channels = lath_smaller(f->block, f->s.in - c);
    for (int64_t p = 0; p < slots->phases; p++) {
      const struct lath_run run = lath_slots_inside(slots, p, t->h, 0, slots->count[p] - (slots->rows - t->rows));
      spread_run(t, &run, c, channels, run.slot);
    }
    multiply_copies(t, c, channels, t->rows * f->pitch, t->z);
  }
}

static void first_stage_pointwise(struct strip *t) {
  const struct lath_run all = {.slot = 0, .count = t->rows, .first = t->h, .step = 1};
  if (t->f->in_place)
    multiply_in_place(t, t->h, t->rows, t->z);
  else
    first_stage_windows(t);
  save_run(t, &all);
}

/* Neighbouring rows of z from the same rows of x. */
static void first_stage_run(const struct strip *t, const struct lath_run *run) {
  const struct forward *f = t->f;
  float *z = t->z + run->slot * f->pitch;
  if (f->in_place) {
    multiply_in_place(t, run->first, run->count, z);
    return;
  }
  for (int64_t c = 0; c < f->s.in; c += f->block) {
    const int64_t channels = lath_smaller(f->block, f->s.in - c);
    spread_run(t, run, c, channels, 0);
    multiply_copies(t, c, channels, run->count * f->pitch, z);
  }
}

/* Separable: z needs the rows that the windows of the second stage meet and the strip above has not left; padding rows are zero. */
static void first_stage_separable(const struct strip *t) {
  const struct forward *f = t->f;
  const struct lath_slots *slots = &f->z_slots;
  for (int64_t p = 0; p < slots->phases; p++) {
    const int64_t from = t->carried ? slots->count[p] - slots->rows : 0, count = slots->count[p] - (slots->rows - t->rows);
    const struct lath_run run = lath_slots_inside(slots, p, t->h, from, count - from);
    const int64_t begin = slots->base[p] + from, end = slots->base[p] + count;
    lath_zero_slots(t->z, f->s.rank, f->z_plane, f->pitch, begin, run.slot - begin);
    lath_zero_slots(t->z, f->s.rank, f->z_plane, f->pitch, run.slot + run.count, end - run.slot - run.count);
    if (run.count > 0) first_stage_run(t, &run);
    save_run(t, &run);
  }
}

static void carry(const struct strip *t) {
  const struct forward *f = t->f;
  const struct lath_slots *slots = &f->z_slots;
  for (int64_t q = 0; q < f->s.rank; q++)
    for (int64_t p = 0; p < slots->phases; p++) {
      float *to = t->z + q * f->z_plane + slots->base[p] * f->pitch;
      memmove(to, to + slots->rows * f->pitch, (size_t)((slots->count[p] - slots->rows) * f->pitch) * sizeof *to);
    }
}

static void second_stage(const struct strip *t) {
  const struct forward *f = t->f;
  const struct lath_lowrank_conv2d *a = f->a;
  const int64_t taps = f->s.rank * f->s.second.taps, row = t->group * f->s.out, pixels = t->rows * f->pitch;
  const struct lath_panels b = lath_panels_listed(f->kernels, pixels, taps, t->z, f->z_rows);
  struct lath_product product = {.m = f->s.out,
                                 .a = f->weights.u + row * taps,
                                 .s_a = taps,
                                 .b = &b,
                                 .start = LATH_START_ROWS,
                                 .bias = f->weights.bias ? f->weights.bias + row : NULL,
                                 .c = t->y,
                                 .s_c = pixels,
                                 .scratch = t->scratch};
  if (f->y_size == 0) {
    product.c = (float *)a->y.data + t->n * a->y.s_n + row * a->y.s_c + t->h * a->y.s_h;
    product.s_c = a->y.s_c;
  }
  lath_multiply(f->kernels, &product);
  for (int64_t m = 0; f->y_size > 0 && m < t->images; m++) {
    const struct lath_part part = {.n = t->n + m,
                                   .channel = row,
                                   .channels = f->s.out,
                                   .first_row = t->h,
                                   .rows = t->rows,
                                   .step = 1,
                                   .width = f->s.width};
    const struct lath_planes planes = {.data = t->y + m * f->s.width, .s_c = pixels, .s_h = f->pitch};
    lath_write_planes(f->kernels, a->dtype, &a->y, &part, &planes);
  }
}

/* ---- units ----------------------------------------------------------------------------------------------------------------------------- */

/* Where the rows of z begin that output row h meets. */
static int64_t first_row_of(const struct forward *f, int64_t h) {
  const int64_t row = h * f->s.second.stride - f->s.second.pad;
  return lath_smaller(lath_larger(row, 0), f->s.p_height);
}

static void run_band(struct strip *t, int64_t from, int64_t to) {
  const struct forward *f = t->f;
  t->own = from == 0 ? 0 : first_row_of(f, from);
  t->own_end = to == f->s.out_height ? f->s.p_height : first_row_of(f, to);
  save_unmet_rows(t);
  for (t->h = from; t->h < to; t->h += t->rows) {
    t->rows = lath_smaller(f->z_slots.rows, to - t->h);
    t->carried = t->h > from;
    if (f->a->form == LATH_POINTWISE) {
      first_stage_pointwise(t);
    } else {
      if (t->carried) carry(t);
      first_stage_separable(t);
    }
    if (!f->only_first) second_stage(t);
  }
}

static void share_units(void *arg, int64_t begin, int64_t end) {
  const struct forward *f = arg;
  const int64_t units = lath_ceil_div(f->a->batch, f->images) * f->bands;
  for (int64_t w = begin; w < end; w++) {
    struct strip t = {.f = f,
                      .padded_h = -1,
                      .copies = f->copies + w * f->copies_size,
                      .z = f->z + w * f->z_size,
                      .planes = f->planes + w * f->planes_size,
                      .y = f->y + w * f->y_size,
                      .scratch = f->scratch + w * f->scratch_size};
    for (int64_t unit = units * w / f->workers; unit < units * (w + 1) / f->workers; unit++) {
      const int64_t band = unit % f->bands;
      t.n = unit / f->bands * f->images;
      t.images = lath_smaller(f->images, f->a->batch - t.n);
      for (t.group = 0; t.group < f->a->groups; t.group++)
        run_band(&t, f->s.out_height * band / f->bands, f->s.out_height * (band + 1) / f->bands);
    }
  }
}

/* ---- entries ----------------------------------------------------------------------------------------------------------------------------- */

static void view_weights(struct forward *f) {
  const struct lath_lowrank_conv2d *a = f->a;
  const int64_t ranks = a->groups * f->s.rank, taps = f->s.in * f->s.first.taps * a->kernel_w,
                rows = f->s.rank * f->s.second.taps;
  int64_t unused;
  if (f->v) lath_to_float(a->dtype, ranks, taps, a->v, taps, f->v, f->s_v);
  f->weights.v = f->v ? f->v : a->v;
  f->weights.u = lath_as_float(a->dtype, a->out, rows, a->u, rows, f->u, &unused);
  f->weights.inner_bias = lath_as_float(a->dtype, 1, ranks, a->inner_bias, ranks, f->inner_bias, &unused);
  f->weights.bias = lath_as_float(a->dtype, 1, a->out, a->bias, a->out, f->bias, &unused);
}

static lath_status run(struct forward *f, const struct lath_host *host) {
  view_weights(f);
  fill_lists(f);
  return lath_host_run(host, f->workers, share_units, f);
}

/* `f` is zero but for what differs from a whole forward. */
static void take(struct forward *f, const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s,
                 const struct lath_host *host, struct lath_arena *arena) {
  struct lath_conv_plan plan = {0};
  (void)lath_lowrank_conv2d_plan(a, 0, &plan); /* the extents were checked */
  f->s = *s;
  prepare(f, a, host, plan.macs, arena);
}

lath_status lath_lowrank_conv2d_workspace(const struct lath_lowrank_conv2d *a, const struct lath_host *host, size_t *bytes) {
  struct forward f = {0};
  struct lath_conv_shape s;
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_shape(a, &s));
  LATH_TRY(lath_check_dtype(a->dtype));
  struct lath_arena arena = lath_arena_on(NULL);
  if (!lath_conv_is_plain(a) && lath_conv_is_linear(a, 0))
    LATH_TRY(lath_conv_linear_workspace(a, 0, host, &arena.used));
  else if (!lath_conv_is_plain(a))
    take(&f, a, &s, host, &arena);
  return lath_arena_bytes(&arena, lath_conv_reference_bytes(a, &s), bytes);
}

lath_status lath_lowrank_conv2d(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  struct lath_conv_shape s;
  size_t bytes;
  if (!host) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_conv_check_forward(a, &s));
  LATH_TRY(lath_lowrank_conv2d_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  if (lath_conv_is_plain(a)) return lath_lowrank_conv2d_ref(a);
  if (lath_conv_is_linear(a, 0)) return lath_conv_linear(a, host);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct forward f = {.p = a->p};
  take(&f, a, &s, host, &arena);
  return run(&f, host);
}

void lath_conv_first_stage_take(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s,
                                const struct lath_host *host, struct lath_arena *arena) {
  struct forward f = {.only_first = 1};
  take(&f, a, s, host, arena);
}

lath_status lath_conv_first_stage(const struct lath_lowrank_conv2d *a, const struct lath_conv_shape *s,
                                  const struct lath_host *host, struct lath_arena arena, float *z) {
  struct forward f = {.p = z, .only_first = 1};
  take(&f, a, s, host, &arena);
  return run(&f, host);
}
