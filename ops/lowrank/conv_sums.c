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

/* ---- which one moves -------------------------------------------------------------------------------------------------------------------- */

static const struct lath_images *wide_images(const struct lath_sums *s) { return s->wide_is_input ? &s->input : &s->output; }
static const struct lath_images *thin_images(const struct lath_sums *s) { return s->wide_is_input ? &s->output : &s->input; }

static int has_taps(const struct lath_sums *s) { return s->stage->taps > 1 || s->columns.taps > 1; }

static void set_motion(struct lath_sums *s) {
  s->reversed = s->wide_is_input && has_taps(s) && s->stage->stride == 1 && s->columns.stride == 1 && 2 * s->rank <= s->wide;
  s->wide_moves = s->wide_is_input && !s->reversed;
  const struct lath_columns moving = s->reversed ? lath_reverse_columns(&s->columns) : s->columns;
  const struct lath_columns staying = lath_plain_columns(moving.out);
  s->wide_columns = s->wide_moves ? moving : staying;
  s->thin_columns = s->wide_moves ? staying : moving;
  s->rows_of_moving = s->reversed ? lath_reverse_rows(s->stage) : *s->stage;
  const int64_t rows = s->rows_of_moving.out;
  s->rows_of_staying = (struct lath_conv_rows){.taps = 1, .stride = 1, .dilation = 1, .in = rows, .out = rows};
}

/* ---- buffers -------------------------------------------------------------------------------------------------------------------------- */

/* Whether the wide one could be read where it lies, image by image. */
static int fits_in_place(const struct lath_sums *s) {
  const struct lath_columns *c = &s->wide_columns;
  const struct lath_conv_rows *r = s->wide_moves ? &s->rows_of_moving : &s->rows_of_staying;
  return r->taps == 1 && r->stride == 1 && r->pad == 0 && r->in == r->out && c->taps == 1 && c->stride == 1 && c->pad == 0 &&
         c->in == c->out && lath_images_are_planes(s->wide_dtype, wide_images(s), c->in);
}

/* Planes of the thin one: its channels and their horizontal taps. */
static int64_t thin_planes(const struct lath_sums *s) { return s->rank * s->thin_columns.taps; }

/* Inner products of rows waste no lanes of a vector, whatever the rank, but have to fold each vector into a number. */
static int prefers_dots(const struct lath_sums *s) {
  const int64_t lanes = s->kernels->lanes, planes = thin_planes(s), padded = lath_ceil_div(planes, lanes) * lanes;
  return padded == lanes || 5 * planes < 4 * padded;
}

/* Rows of one channel of the wide one in a product: its taps. */
static int64_t rows_per_channel(const struct lath_sums *s) { return s->wide_moves ? s->stage->taps * s->columns.taps : 1; }

static void take_strips(struct lath_sums *s, const struct lath_host *host, int64_t macs) {
  s->workers = lath_smaller(lath_host_workers(host, macs), lath_larger(1, s->wide));
  const int64_t rows = s->rows_of_staying.out, width = s->wide_columns.out, pixels = rows * width;
  s->in_place = fits_in_place(s) && pixels >= FEW_IN_PLACE;
  s->images = s->in_place ? 1 : lath_images_side_by_side(s->batch, pixels, LATH_STRIP_PIXELS);
  s->pitch = s->images * width;
  s->rows = lath_strip_rows(rows, s->pitch, STRIP_PIXELS);
}

static void take_lists(struct lath_sums *s, struct lath_arena *arena) {
  lath_slots_take(&s->wide_slots, s->wide_moves ? &s->rows_of_moving : &s->rows_of_staying, s->rows, arena);
  lath_slots_take(&s->thin_slots, s->wide_moves ? &s->rows_of_staying : &s->rows_of_moving, s->rows, arena);
  if (s->wide_columns.taps > 1) lath_columns_take(&s->wide_columns, s->kernels, s->wide_slots.total, arena);
  if (s->thin_columns.taps > 1) lath_columns_take(&s->thin_columns, s->kernels, s->thin_slots.total, arena);
  s->wide_rows = lath_take_integers(arena, s->block * rows_per_channel(s));
  s->thin_rows = lath_take_integers(arena, s->dots ? thin_planes(s) * s->thin_slots.stage->taps : s->rows * s->pitch);
}

void lath_sums_take(struct lath_sums *s, const struct lath_host *host, int64_t macs, struct lath_arena *arena) {
  s->kernels = lath_kernels();
  set_motion(s);
  take_strips(s, host, macs);
  s->dots = prefers_dots(s);
  s->block = lath_smaller(s->wide, lath_larger(1, BLOCK_ROWS / rows_per_channel(s)));
  take_lists(s, arena);
  s->wide_plane = lath_plane_size(s->wide_slots.total * s->pitch);
  s->thin_plane = lath_plane_size(s->thin_slots.total * s->pitch);
  s->s_turned = lath_plane_size(thin_planes(s));
  s->copies_size = s->in_place ? 0 : lath_with_slack(s->kernels, s->block * s->wide_columns.taps * s->wide_plane);
  s->planes_size = lath_planes_copy(s->wide_dtype, wide_images(s), s->block, s->wide_slots.total, s->wide_columns.in);
  s->thin_size = thin_planes(s) * s->thin_plane;
  s->turned_size = s->dots ? 0 : lath_with_slack(s->kernels, s->thin_plane * s->s_turned);
  s->scratch_size = lath_product_scratch(s->kernels);
  s->sums = s->dots && !s->reversed ? NULL : lath_take(arena, s->groups * s->wide, s->stage->taps * s->columns.taps * s->rank);
  s->copies = lath_take(arena, s->workers, s->copies_size);
  s->planes = lath_take(arena, s->workers, s->planes_size);
  s->thin = lath_take(arena, s->workers, s->thin_size);
  s->turned = lath_take(arena, s->workers, s->turned_size);
  s->scratch = lath_take(arena, s->workers, s->scratch_size);
}

/* The wide one: per channel its taps. */
static void fill_wide_rows(const struct lath_sums *s) {
  const int64_t taps = s->wide_slots.stage->taps, across = s->wide_columns.taps;
  for (int64_t c = 0; s->in_place && c < s->block; c++) s->wide_rows[c] = c * wide_images(s)->s_c;
  for (int64_t c = 0; !s->in_place && c < s->block; c++)
    for (int64_t i = 0; i < taps; i++)
      for (int64_t j = 0; j < across; j++)
        s->wide_rows[(c * taps + i) * across + j] = (c * across + j) * s->wide_plane + s->wide_slots.tap[i] * s->pitch;
}

/* The thin one, for inner products: per channel its taps, those that come in reverse in the order of the weight. Turned: its pixels. */
static void fill_thin_rows(const struct lath_sums *s) {
  const int64_t taps = s->thin_slots.stage->taps, across = s->thin_columns.taps;
  for (int64_t p = 0; !s->dots && p < s->rows * s->pitch; p++) s->thin_rows[p] = p * s->s_turned;
  for (int64_t q = 0; s->dots && q < s->rank; q++)
    for (int64_t i = 0; i < taps; i++)
      for (int64_t j = 0; j < across; j++) {
        const int64_t row = s->reversed ? taps - 1 - i : i, column = s->reversed ? across - 1 - j : j;
        s->thin_rows[(q * taps + i) * across + j] = (q * across + column) * s->thin_plane + s->thin_slots.tap[row] * s->pitch;
      }
}

static void fill_lists(struct lath_sums *s) {
  lath_slots_fill(&s->wide_slots);
  lath_slots_fill(&s->thin_slots);
  lath_columns_fill(&s->wide_columns, s->kernels);
  lath_columns_fill(&s->thin_columns, s->kernels);
  fill_wide_rows(s);
  fill_thin_rows(s);
}

/* ---- one strip ------------------------------------------------------------------------------------------------------------------------ */

struct strip {
  const struct lath_sums *s;
  int64_t group, n, images;
  int64_t h, rows;  /* rows of the one that stays */
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

/* The thin one, and unless inner products read it as it is, turned to (pixels, channels and horizontal taps): the rows of B. */
static void load_thin(const struct strip *t) {
  const struct lath_sums *s = t->s;
  load(t, &s->thin_slots, LATH_F32, thin_images(s), &s->thin_columns, t->group * s->rank, s->rank, NULL, t->thin,
       s->thin_plane);
  if (!s->dots)
    s->kernels->transpose(thin_planes(s), s->thin_slots.total * s->pitch, t->thin, s->thin_plane, t->turned, s->s_turned);
}

/* sums (rows of these channels, planes) += wide (rows, pixels) thin (pixels, planes), the thin one `slot` rows further on. */
static void add_product(const struct strip *t, const float *wide, int64_t s_wide, const int64_t *rows, int64_t channels,
                        int64_t slot, float *sums) {
  const struct lath_sums *s = t->s;
  const struct lath_panels b = lath_panels_listed(s->kernels, thin_planes(s), t->rows * s->pitch,
                                                  t->turned + slot * s->pitch * s->s_turned, s->thin_rows);
  const struct lath_product product = {.m = channels * rows_per_channel(s),
                                       .a = wide,
                                       .s_a = s_wide,
                                       .a_rows = rows,
                                       .b = &b,
                                       .start = t->first ? LATH_START_ROWS : LATH_START_C,
                                       .c = sums,
                                       .s_c = thin_planes(s),
                                       .scratch = t->scratch};
  lath_multiply(s->kernels, &product);
}

/* The same sums as inner products: (rank, channels and taps), or (channels, rank and taps). */
static void add_dots(const struct strip *t, const float *wide, int64_t s_wide, const int64_t *rows, int64_t c,
                     int64_t channels) {
  const struct lath_sums *s = t->s;
  const int64_t pixels = t->rows * s->pitch, taps = s->stage->taps * s->columns.taps;
  if (s->wide_moves) {
    const int64_t length = s->wide * taps;
    s->kernels->dot_listed(s->rank, channels * taps, pixels, t->thin, s->thin_plane, wide, rows, !t->first,
                           s->d_weight + t->group * s->rank * length + c * taps, length);
  } else {
    float *to = s->reversed ? s->sums : s->d_weight;
    s->kernels->dot_listed(channels, s->rank * taps, pixels, wide, s_wide, t->thin, s->thin_rows, !t->first,
                           to + (t->group * s->wide + c) * s->rank * taps, s->rank * taps);
  }
}

/* Vertical taps of the wide one are rows of one product; each of the thin one is a product of its own. */
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
    load(t, &s->wide_slots, s->wide_dtype, images, &s->wide_columns, channel, channels, t->planes, t->copies, s->wide_plane);
  }
  const int64_t *rows = s->in_place && !s->dots ? NULL : s->wide_rows;
  const int64_t products = s->thin_slots.stage->taps;
  if (s->d_weight && s->dots) add_dots(t, wide, s_wide, rows, c, channels);
  for (int64_t i = 0; s->d_weight && !s->dots && i < products; i++) {
    const int64_t row = (i * s->groups * s->wide + channel) * rows_per_channel(s);
    add_product(t, wide, s_wide, rows, channels, s->thin_slots.tap[i], s->sums + row * thin_planes(s));
  }
  if (s->d_bias && !s->wide_is_input) s->kernels->add_columns(channels, t->rows * s->pitch, wide, s_wide, s->d_bias + channel);
}

static void run_strip(struct strip *t) {
  const struct lath_sums *s = t->s;
  if (s->d_weight) load_thin(t);
  for (int64_t c = t->from; c < t->to && (s->d_weight || !s->wide_is_input); c += s->block)
    add_channels(t, c, lath_smaller(s->block, t->to - c));
}

/* ---- threads share the channels ---------------------------------------------------------------------------------------------------------- */

/* From sums (vertical tap, group, wide channel, rank and horizontal tap) to the weight (group, wide channel, rank and vertical tap). */
static void write_products(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const int64_t taps = s->stage->taps, rank = s->rank;
  for (int64_t i = 0; i < taps; i++)
    for (int64_t o = t->from; o < t->to; o++) {
      const float *from = s->sums + ((i * s->groups + t->group) * s->wide + o) * rank;
      float *to = s->d_weight + (t->group * s->wide + o) * rank * taps + i;
      for (int64_t q = 0; q < rank; q++) to[q * taps] = from[q];
    }
}

/* The same sums, whose taps came in reverse, to the weight (group, rank, wide channel and taps): some rows of it at a time, so that they
 * stay in cache from tap to tap. */
#define TURN 16
static void write_reversed_products(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const int64_t taps = s->stage->taps, across = s->columns.taps, planes = thin_planes(s), row = s->wide * taps * across;
  float block[TURN * TURN];
  for (int64_t q = 0; q < planes; q += TURN)
    for (int64_t i = 0; i < taps; i++)
      for (int64_t c = t->from; c < t->to; c += TURN) {
        const int64_t rows = lath_smaller(TURN, t->to - c), columns = lath_smaller(TURN, planes - q);
        const float *from = s->sums + (((taps - 1 - i) * s->groups + t->group) * s->wide + c) * planes + q;
        s->kernels->transpose(rows, columns, from, planes, block, TURN);
        for (int64_t k = 0; k < columns; k++) {
          const int64_t channel = (q + k) / across, j = across - 1 - (q + k) % across;
          float *to = s->d_weight + (t->group * s->rank + channel) * row + (c * taps + i) * across + j;
          for (int64_t o = 0; o < rows; o++) to[o * taps * across] = block[k * TURN + o];
        }
      }
}

/* From sums (group, wide channel, rank and taps) to the weight (group, rank, wide channel and taps). */
static void write_dots(const struct strip *t, int64_t c) {
  const struct lath_sums *s = t->s;
  const int64_t taps = s->stage->taps * s->columns.taps;
  for (int64_t q = 0; q < s->rank; q++)
    memcpy(s->d_weight + ((t->group * s->rank + q) * s->wide + c) * taps,
           s->sums + ((t->group * s->wide + c) * s->rank + q) * taps, (size_t)taps * sizeof(float));
}

static void write_weight(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const int64_t row = rows_per_channel(s), length = s->wide * row;
  if (s->wide_moves)
    s->kernels->transpose((t->to - t->from) * row, s->rank, s->sums + (t->group * length + t->from * row) * s->rank, s->rank,
                          s->d_weight + t->group * s->rank * length + t->from * row, length);
  else if (s->dots)
    for (int64_t c = t->from; c < t->to; c++) write_dots(t, c);
  else if (s->reversed)
    write_reversed_products(t);
  else
    write_products(t);
}

/* The bias of a thin output. */
static void add_thin_bias(const struct strip *t) {
  const struct lath_sums *s = t->s;
  const struct lath_images *o = &s->output;
  for (int64_t n = 0; n < s->batch; n++)
    s->kernels->add_columns(s->rank, s->stage->out * s->columns.out,
                            (const float *)o->data + n * o->s_n + t->group * s->rank * o->s_c, o->s_c,
                            s->d_bias + t->group * s->rank);
}

static void run_channels(struct strip *t) {
  const struct lath_sums *s = t->s;
  if (s->d_bias && s->wide_is_input && t->from == 0) add_thin_bias(t);
  for (t->n = 0; t->n < s->batch; t->n += s->images) {
    t->images = lath_smaller(s->images, s->batch - t->n);
    for (t->h = 0; t->h < s->rows_of_staying.out; t->h += s->rows) {
      t->rows = lath_smaller(s->rows, s->rows_of_staying.out - t->h);
      t->first = t->n == 0 && t->h == 0;
      run_strip(t);
    }
  }
  if (s->d_weight && s->sums) write_weight(t);
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
