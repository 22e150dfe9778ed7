/* SPDX-License-Identifier: Apache-2.0
 * conv_sums.c - gradients of the weights of one stage. */
#include "lowrank/conv_sums.h"

#include <string.h>

#include "core/check.h"
#include "core/host.h"
#include "gemm/gemm.h"

#define BLOCK_ROWS 192   /* rows of copies at a time, each of a strip's pixels: they stay in L2 */
#define STRIP_PIXELS 512 /* sums over fewer pixels spend their time on adding up */
#define FEW_IN_PLACE 128 /* images of fewer pixels are put side by side, others only where they are copied anyway */

/* ---- buffers -------------------------------------------------------------------------------------------------------------------------- */

static const struct lath_images *wide_images(const struct lath_sums *s) { return s->wide_is_input ? &s->input : &s->output; }
static const struct lath_images *thin_images(const struct lath_sums *s) { return s->wide_is_input ? &s->output : &s->input; }
static const struct lath_slots *wide_slots(const struct lath_sums *s) {
  return s->wide_is_input ? &s->input_slots : &s->output_slots;
}
static const struct lath_slots *thin_slots(const struct lath_sums *s) {
  return s->wide_is_input ? &s->output_slots : &s->input_slots;
}

/* Pixels in a row of the wide one, and its horizontal taps. */
static struct lath_columns wide_columns(const struct lath_sums *s) {
  return s->wide_is_input ? s->columns : lath_plain_columns(s->columns.out);
}

/* Whether the wide one could be read where it lies, image by image. */
static int fits_in_place(const struct lath_sums *s) {
  const struct lath_columns c = wide_columns(s);
  const struct lath_conv_rows *r = s->stage;
  const int rows = !s->wide_is_input || (r->taps == 1 && r->stride == 1 && r->pad == 0 && r->in == r->out);
  return rows && c.taps == 1 && c.stride == 1 && c.pad == 0 && c.in == c.out &&
         lath_images_are_planes(s->wide_dtype, wide_images(s), c.in);
}

/* Inner products of rows waste no lanes of a vector, whatever the rank, but have to fold each vector into a number. */
static int prefers_dots(const struct lath_sums *s) {
  const int64_t lanes = s->kernels->lanes, padded = lath_ceil_div(s->rank, lanes) * lanes;
  return padded == lanes || 5 * s->rank < 4 * padded;
}

/* Rows of one channel of the wide one in a product: its taps. */
static int64_t rows_per_channel(const struct lath_sums *s) { return s->wide_is_input ? s->stage->taps * s->columns.taps : 1; }

void lath_sums_take(struct lath_sums *s, const struct lath_host *host, int64_t macs, struct lath_arena *arena) {
  s->kernels = lath_kernels();
  s->workers = lath_smaller(lath_host_workers(host, macs), lath_larger(1, s->wide));
  const int64_t pixels = s->stage->out * s->columns.out;
  s->in_place = fits_in_place(s) && pixels >= FEW_IN_PLACE;
  s->images = s->in_place ? 1 : lath_images_side_by_side(s->batch, pixels, LATH_STRIP_PIXELS);
  s->pitch = s->images * s->columns.out;
  s->rows = lath_strip_rows(s->stage->out, s->pitch, STRIP_PIXELS);
  s->dots = prefers_dots(s);
  lath_slots_take(&s->input_slots, s->stage, s->rows, arena);
  s->output_rows = (struct lath_conv_rows){.taps = 1, .stride = 1, .dilation = 1, .in = s->stage->out, .out = s->stage->out};
  lath_slots_take(&s->output_slots, &s->output_rows, s->rows, arena);
  const struct lath_columns columns = wide_columns(s);
  const int64_t taps = rows_per_channel(s);
  if (s->wide_is_input) lath_columns_take(&s->columns, s->kernels, s->input_slots.total, arena);
  s->block = lath_smaller(s->wide, lath_larger(1, BLOCK_ROWS / taps));
  s->wide_plane = lath_plane_size(wide_slots(s)->total * s->pitch);
  s->thin_plane = lath_plane_size(thin_slots(s)->total * s->pitch);
  s->s_turned = lath_plane_size(s->rank);
  s->copies_size = s->in_place ? 0 : lath_with_slack(s->kernels, s->block * columns.taps * s->wide_plane);
  s->planes_size = lath_planes_copy(s->wide_dtype, wide_images(s), s->block, wide_slots(s)->total, columns.in);
  s->thin_size = s->rank * s->thin_plane;
  s->turned_size = s->dots ? 0 : lath_with_slack(s->kernels, s->thin_plane * s->s_turned);
  s->scratch_size = lath_product_scratch(s->kernels);
  s->wide_rows = lath_take_integers(arena, s->block * taps);
  s->thin_rows = lath_take_integers(arena, s->dots ? s->rank * s->stage->taps : s->rows * s->pitch);
  s->sums = s->dots ? NULL : lath_take(arena, s->groups * s->wide, s->stage->taps * s->columns.taps * s->rank);
  s->copies = lath_take(arena, s->workers, s->copies_size);
  s->planes = lath_take(arena, s->workers, s->planes_size);
  s->thin = lath_take(arena, s->workers, s->thin_size);
  s->turned = lath_take(arena, s->workers, s->turned_size);
  s->scratch = lath_take(arena, s->workers, s->scratch_size);
}

static void fill_lists(struct lath_sums *s) {
  lath_slots_fill(&s->input_slots);
  lath_slots_fill(&s->output_slots);
  lath_columns_fill(&s->columns, s->kernels);
  const int64_t taps = s->stage->taps, across = s->columns.taps;
  for (int64_t p = 0; !s->dots && p < s->rows * s->pitch; p++) s->thin_rows[p] = p * s->s_turned;
  for (int64_t q = 0; s->dots && q < s->rank; q++)
    for (int64_t i = 0; i < taps; i++)
      s->thin_rows[q * taps + i] = q * s->thin_plane + (s->wide_is_input ? 0 : s->input_slots.tap[i] * s->pitch);
  for (int64_t c = 0; c < s->block; c++) {
    if (!s->wide_is_input || s->in_place) s->wide_rows[c] = c * (s->in_place ? wide_images(s)->s_c : s->wide_plane);
    for (int64_t i = 0; s->wide_is_input && !s->in_place && i < taps; i++)
      for (int64_t j = 0; j < across; j++)
        s->wide_rows[(c * taps + i) * across + j] = (c * across + j) * s->wide_plane + s->input_slots.tap[i] * s->pitch;
  }
}

/* ---- one strip ------------------------------------------------------------------------------------------------------------------------ */

struct strip {
  const struct lath_sums *s;
  int64_t group, n, images;
  int64_t h, rows;  /* output rows of the stage */
  int64_t from, to; /* channels of the wide one */
  int first;        /* of all strips */
  float *copies, *planes, *thin, *turned, *scratch;
};

/* Channels [c, c + channels) of one side, all rows that the strip meets, padding rows as zeros. */
static void load(const struct strip *t, const struct lath_slots *slots, lath_dtype dtype, const struct lath_images *images,
                 const struct lath_columns *columns, int64_t c, int64_t channels, float *planes, float *copies, int64_t plane) {
  const struct lath_sums *s = t->s;
  /* The last images may be fewer than fit side by side; the others must not add to the sums. */
  if (t->images < s->images) lath_zero_slots(copies, channels * columns->taps, plane, s->pitch, 0, slots->total);
  for (int64_t p = 0; p < slots->phases; p++) {
    const int64_t begin = slots->base[p], end = begin + slots->count[p] - (slots->rows - t->rows);
    const struct lath_run run = lath_slots_inside(slots, p, t->h, 0, end - begin);
    const struct lath_part part = {.n = t->n,
                                   .channel = c,
                                   .channels = channels,
                                   .first_row = run.first,
                                   .rows = run.count,
                                   .step = run.step,
                                   .width = columns->in};
    const struct lath_copies to = {
        .data = copies + run.slot * s->pitch, .s_c = columns->taps * plane, .s_tap = plane, .s_h = s->pitch};
    lath_zero_slots(copies, channels * columns->taps, plane, s->pitch, begin, run.slot - begin);
    lath_load_images(s->kernels, dtype, images, &part, t->images, columns, 0, planes, &to);
    lath_zero_slots(copies, channels * columns->taps, plane, s->pitch, run.slot + run.count, end - run.slot - run.count);
  }
}

/* The thin one, and unless inner products read it as it is, turned to (pixels, rank): the rows of B. */
static void load_thin(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const struct lath_columns plain = lath_plain_columns(s->columns.out);
  const struct lath_slots *slots = thin_slots(s);
  load(t, slots, LATH_F32, thin_images(s), &plain, t->group * s->rank, s->rank, NULL, t->thin, s->thin_plane);
  if (!s->dots) s->kernels->transpose(s->rank, slots->total * s->pitch, t->thin, s->thin_plane, t->turned, s->s_turned);
}

/* sums (rows of these channels, rank) += wide (rows, pixels) thin (pixels, rank), the thin one `slot` rows further on. */
static void add_product(const struct strip *t, const float *wide, int64_t s_wide, const int64_t *rows, int64_t channels,
                        int64_t slot, float *sums) {
  const struct lath_sums *s = t->s;
  const struct lath_panels b =
      lath_panels_listed(s->kernels, s->rank, t->rows * s->pitch, t->turned + slot * s->pitch * s->s_turned, s->thin_rows);
  const struct lath_product product = {.m = channels * rows_per_channel(s),
                                       .a = wide,
                                       .s_a = s_wide,
                                       .a_rows = rows,
                                       .b = &b,
                                       .start = t->first ? LATH_START_ROWS : LATH_START_C,
                                       .c = sums,
                                       .s_c = s->rank,
                                       .scratch = t->scratch};
  lath_multiply(s->kernels, &product);
}

/* The same sums as inner products, straight into the weight: (rank, channels and taps) or (channels, rank and taps). */
static void add_dots(const struct strip *t, const float *wide, int64_t s_wide, const int64_t *rows, int64_t c,
                     int64_t channels) {
  const struct lath_sums *s = t->s;
  const int64_t pixels = t->rows * s->pitch, taps = s->stage->taps, per_channel = rows_per_channel(s);
  if (s->wide_is_input) {
    const int64_t length = s->wide * per_channel;
    s->kernels->dot_listed(s->rank, channels * per_channel, pixels, t->thin, s->thin_plane, wide, rows, !t->first,
                           s->d_weight + t->group * s->rank * length + c * per_channel, length);
  } else {
    s->kernels->dot_listed(channels, s->rank * taps, pixels, wide, s_wide, t->thin, s->thin_rows, !t->first,
                           s->d_weight + (t->group * s->wide + c) * s->rank * taps, s->rank * taps);
  }
}

/* With vertical taps in the wide one they are rows of one product; in the thin one, each is a product of its own. */
static void add_channels(const struct strip *t, int64_t c, int64_t channels) {
  const struct lath_sums *s = t->s;
  const struct lath_images *images = wide_images(s);
  const float *wide = t->copies;
  int64_t s_wide = s->wide_plane;
  const int64_t channel = t->group * s->wide + c;
  if (s->in_place) {
    wide = (const float *)images->data + t->n * images->s_n + channel * images->s_c + t->h * images->s_h;
    s_wide = images->s_c;
    lath_fetch_rows(channels, t->rows * s->pitch, wide, s_wide);
  } else {
    const struct lath_columns columns = wide_columns(s);
    load(t, wide_slots(s), s->wide_dtype, images, &columns, channel, channels, t->planes, t->copies, s->wide_plane);
  }
  const int64_t *rows = s->in_place && !s->dots ? NULL : s->wide_rows;
  const int64_t products = s->wide_is_input ? 1 : s->stage->taps;
  if (s->d_weight && s->dots) add_dots(t, wide, s_wide, rows, c, channels);
  for (int64_t i = 0; s->d_weight && !s->dots && i < products; i++) {
    const int64_t row = (i * s->groups * s->wide + channel) * rows_per_channel(s);
    add_product(t, wide, s_wide, rows, channels, thin_slots(s)->tap[i], s->sums + row * s->rank);
  }
  if (s->d_bias && !s->wide_is_input) s->kernels->add_columns(channels, t->rows * s->pitch, wide, s_wide, s->d_bias + channel);
}

static void run_strip(struct strip *t) {
  const struct lath_sums *s = t->s;
  if (s->d_weight || s->wide_is_input) load_thin(t);
  if (s->d_bias && s->wide_is_input && t->from == 0)
    s->kernels->add_columns(s->rank, t->rows * s->pitch, t->thin, s->thin_plane, s->d_bias + t->group * s->rank);
  for (int64_t c = t->from; c < t->to && (s->d_weight || !s->wide_is_input); c += s->block)
    add_channels(t, c, lath_smaller(s->block, t->to - c));
}

/* ---- threads share the channels ---------------------------------------------------------------------------------------------------------- */

/* From sums per (channel and tap, rank) to the layout of the weight. */
static void write_weight(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const int64_t taps = s->stage->taps, wide = s->wide, rank = s->rank;
  if (s->wide_is_input) {
    const int64_t row = taps * s->columns.taps, length = wide * row;
    s->kernels->transpose((t->to - t->from) * row, rank, s->sums + (t->group * length + t->from * row) * rank, rank,
                          s->d_weight + t->group * rank * length + t->from * row, length);
    return;
  }
  for (int64_t i = 0; i < taps; i++)
    for (int64_t o = t->from; o < t->to; o++) {
      const float *from = s->sums + ((i * s->groups + t->group) * wide + o) * rank;
      float *to = s->d_weight + (t->group * wide + o) * rank * taps + i;
      for (int64_t q = 0; q < rank; q++) to[q * taps] = from[q];
    }
}

static void run_channels(struct strip *t) {
  const struct lath_sums *s = t->s;
  for (t->n = 0; t->n < s->batch; t->n += s->images) {
    t->images = lath_smaller(s->images, s->batch - t->n);
    for (t->h = 0; t->h < s->stage->out; t->h += s->rows) {
      t->rows = lath_smaller(s->rows, s->stage->out - t->h);
      t->first = t->n == 0 && t->h == 0;
      run_strip(t);
    }
  }
  if (s->d_weight && !s->dots) write_weight(t);
}

static void share_channels(void *arg, int64_t begin, int64_t end) {
  const struct lath_sums *s = arg;
  for (int64_t w = begin; w < end; w++) {
    struct strip t = {.s = s,
                      .from = s->wide * w / s->workers,
                      .to = s->wide * (w + 1) / s->workers,
                      .copies = s->copies + w * s->copies_size,
                      .planes = s->planes + w * s->planes_size,
                      .thin = s->thin + w * s->thin_size,
                      .turned = s->turned + w * s->turned_size,
                      .scratch = s->scratch + w * s->scratch_size};
    for (t.group = 0; t.group < s->groups; t.group++) run_channels(&t);
  }
}

static void zero(float *sums, int64_t count) {
  if (sums) memset(sums, 0, (size_t)count * sizeof *sums);
}

lath_status lath_sums_run(struct lath_sums *s, const struct lath_host *host) {
  zero(s->d_bias, s->groups * (s->wide_is_input ? s->rank : s->wide));
  if (s->batch == 0) {
    zero(s->d_weight, s->groups * s->wide * s->rank * s->stage->taps * s->columns.taps);
    return LATH_OK;
  }
  fill_lists(s);
  return lath_host_run(host, s->workers, share_channels, s);
}
