/* SPDX-License-Identifier: Apache-2.0
 * conv_transposed.c - one stage of a low-rank convolution run backwards. */
#include "lowrank/conv_transposed.h"

#include <string.h>

#include "core/check.h"
#include "core/host.h"
#include "gemm/gemm.h"

#define SOURCE_FLOATS 98304 /* of a strip: with its products in L2 */
#define FEWEST_PIXELS 64
#define BLOCK_ROWS 256 /* rows of the product that are written before they are gathered */

/* ---- residues ------------------------------------------------------------------------------------------------------------------------- */

/* Row t of the input is row t + pad of the padded one; `phase` is its residue modulo the stride. Tap i meets rows of the residue
 * i dilation mod stride, and for row residue + stride m it meets output row m - step_of(i). */
static int64_t residue_of(const struct lath_conv_rows *stage, int64_t tap) { return tap * stage->dilation % stage->stride; }
static int64_t step_of(const struct lath_conv_rows *stage, int64_t tap) { return tap * stage->dilation / stage->stride; }

struct phase {
  int64_t residue;
  int64_t first, rows;       /* m of the first row of this residue, and how many there are */
  int64_t taps, before;      /* taps that meet it, and those of the residues that come before it */
  int64_t nearest, farthest; /* steps of its taps */
};

static struct phase phase_of(const struct lath_conv_rows *stage, int64_t residue) {
  struct phase p = {.residue = residue};
  p.first = stage->pad > residue ? lath_ceil_div(stage->pad - residue, stage->stride) : 0;
  const int64_t row = residue + stage->stride * p.first - stage->pad;
  p.rows = row < stage->in ? lath_ceil_div(stage->in - row, stage->stride) : 0;
  for (int64_t i = 0; i < stage->taps; i++) {
    p.before += residue_of(stage, i) < residue;
    if (residue_of(stage, i) != residue) continue;
    if (p.taps++ == 0) p.nearest = step_of(stage, i);
    p.farthest = step_of(stage, i);
  }
  return p;
}

/* Slots that a strip may need beyond its rows. */
static int64_t reach_of(const struct lath_conv_rows *stage) { return (stage->taps - 1) * stage->dilation / stage->stride; }

/* ---- buffers -------------------------------------------------------------------------------------------------------------------------- */

static int is_plain(const struct lath_columns *c) { return c->taps == 1 && c->stride == 1 && c->pad == 0 && c->in == c->out; }

static int reads_in_place(const struct lath_transposed *t) {
  const struct lath_conv_rows *s = t->stage;
  return s->taps == 1 && s->stride == 1 && s->pad == 0 && t->images == 1 && is_plain(&t->from) &&
         lath_images_are_planes(t->source_dtype, &t->source, t->from.in);
}

static int writes_directly(const struct lath_transposed *t) {
  return is_plain(&t->to) && t->stage->stride == 1 && t->images == 1 &&
         lath_images_are_planes(t->target_dtype, &t->target, t->to.in);
}

static void take_strips(struct lath_transposed *t, const struct lath_host *host, int64_t macs) {
  t->workers = lath_host_workers(host, macs);
  const int64_t even = lath_larger(1, lath_ceil_div(t->batch, t->workers));
  t->images = lath_smaller(lath_images_side_by_side(t->batch, t->stage->out * t->from.out, LATH_FEW_PIXELS), even);
  t->pitch = t->images * t->from.out;
  const int64_t fit = SOURCE_FLOATS / lath_larger(t->sources * t->from.taps, 1);
  const int64_t pixels = lath_smaller(lath_larger(fit, FEWEST_PIXELS), LATH_STRIP_PIXELS);
  t->rows = lath_strip_rows(lath_ceil_div(t->stage->in, t->stage->stride), t->pitch, pixels);
}

void lath_transposed_take(struct lath_transposed *t, const struct lath_host *host, int64_t macs, struct lath_arena *arena) {
  t->kernels = lath_kernels();
  const int spread = t->columns.stride == 1 && !is_plain(&t->columns);
  t->from = spread ? lath_reverse_columns(&t->columns) : lath_plain_columns(t->columns.out);
  t->to = spread ? lath_plain_columns(t->columns.in) : t->columns;
  take_strips(t, host, macs);
  t->in_place = reads_in_place(t);
  t->direct = writes_directly(t);
  const int64_t taps = t->to.taps, slots = t->rows + reach_of(t->stage);
  t->block = t->direct ? t->targets : lath_smaller(t->targets, lath_larger(1, BLOCK_ROWS / taps));
  t->source_plane = lath_plane_size(slots * t->pitch);
  t->target_plane = lath_plane_size(t->rows * t->pitch);
  t->s_turned = lath_row_stride(t->stage->taps * t->from.taps * t->sources);
  t->copies_size = t->in_place ? 0 : lath_with_slack(t->kernels, t->sources * t->from.taps * t->source_plane);
  t->source_planes_size = lath_planes_copy(t->source_dtype, &t->source, t->sources, slots, t->from.in);
  t->products_size = t->direct ? 0 : lath_with_slack(t->kernels, t->block * taps * t->target_plane);
  t->planes_size = lath_planes_copy(t->target_dtype, &t->target, t->block, t->rows, t->to.in);
  t->scratch_size = lath_product_scratch(t->kernels);
  t->turned = lath_take(arena, t->groups * t->targets * taps, t->s_turned);
  t->turning_size = t->stage->taps * t->columns.taps * t->sources;
  t->turning = lath_take(arena, t->workers, t->turning_size);
  t->source_rows = lath_take_integers(arena, t->stage->taps * t->from.taps * t->sources);
  lath_columns_take(&t->from, t->kernels, slots, arena);
  t->copies = lath_take(arena, t->workers, t->copies_size);
  t->source_planes = lath_take(arena, t->workers, t->source_planes_size);
  t->products = lath_take(arena, t->workers, t->products_size);
  t->planes = lath_take(arena, t->workers, t->planes_size);
  t->scratch = lath_take(arena, t->workers, t->scratch_size);
}

/* The place of a tap among all taps when they are sorted by residue: those of one residue are neighbours. */
static int64_t place_of(const struct lath_conv_rows *stage, int64_t tap) {
  int64_t place = phase_of(stage, residue_of(stage, tap)).before;
  for (int64_t i = 0; i < tap; i++) place += residue_of(stage, i) == residue_of(stage, tap);
  return place;
}

/* Row (c, j) of the turned weight holds (place of i, j, sources): what one pixel of a product is a sum over. Of both j, the one that the
 * product keeps apart counts as in the weight, the other one in reverse. */
static void turn_channel(const struct lath_transposed *t, int64_t group, int64_t c, float *turning) {
  const int64_t taps = t->stage->taps, across = t->columns.taps, columns = taps * across;
  t->kernels->transpose(t->sources, columns, t->weight + group * t->sources * t->s_weight + c * columns, t->s_weight, turning,
                        t->sources);
  float *to = t->turned + (group * t->targets + c) * t->to.taps * t->s_turned;
  for (int64_t i = 0; i < taps; i++)
    for (int64_t j = 0; j < across; j++) {
      const int64_t row = t->to.taps > 1 ? j : 0, behind = t->from.taps > 1 ? across - 1 - j : 0;
      memcpy(to + row * t->s_turned + (place_of(t->stage, i) * t->from.taps + behind) * t->sources,
             turning + (i * across + j) * t->sources, (size_t)t->sources * sizeof *to);
    }
}

static void turn_weight(void *arg, int64_t begin, int64_t end) {
  const struct lath_transposed *t = arg;
  for (int64_t w = begin; w < end; w++)
    for (int64_t g = 0; g < t->groups; g++)
      for (int64_t c = t->targets * w / t->workers; c < t->targets * (w + 1) / t->workers; c++)
        turn_channel(t, g, c, t->turning + w * t->turning_size);
}

/* In every phase its farthest tap meets slot 0, and each other tap lies as many slots further on as it is nearer. */
static void fill_lists(struct lath_transposed *t) {
  const int64_t across = t->from.taps;
  lath_columns_fill(&t->from, t->kernels);
  for (int64_t i = 0; i < t->stage->taps; i++) {
    const int64_t slot = phase_of(t->stage, residue_of(t->stage, i)).farthest - step_of(t->stage, i);
    for (int64_t j = 0; j < across; j++)
      for (int64_t k = 0; k < t->sources; k++)
        t->source_rows[(place_of(t->stage, i) * across + j) * t->sources + k] =
            (k * across + j) * t->source_plane + slot * t->pitch;
  }
}

/* ---- one strip ------------------------------------------------------------------------------------------------------------------------ */

struct strip {
  const struct lath_transposed *t;
  const struct phase *phase;
  int64_t n, images, group;
  int64_t m, rows; /* rows residue + stride m ... of the padded input */
  float *copies, *source_planes, *products, *planes, *scratch;
};

/* The first row of the target in this strip. */
static int64_t target_row(const struct strip *s) { return s->phase->residue + s->t->stage->stride * s->m - s->t->stage->pad; }

/* Slot k of the copies holds output row m - farthest + k of the stage; rows that do not exist are zero. */
static void load_sources(const struct strip *s) {
  const struct lath_transposed *t = s->t;
  const int64_t first = s->m - s->phase->farthest, slots = s->rows + s->phase->farthest - s->phase->nearest;
  const int64_t from = lath_smaller(lath_larger(-first, 0), slots),
                to = lath_smaller(lath_larger(t->stage->out - first, from), slots);
  const struct lath_part part = {.n = s->n,
                                 .channel = s->group * t->sources,
                                 .channels = t->sources,
                                 .first_row = first + from,
                                 .rows = to - from,
                                 .step = 1,
                                 .width = t->from.in};
  const int64_t planes = t->sources * t->from.taps;
  const struct lath_copies copies = {
      .data = s->copies + from * t->pitch, .s_c = t->from.taps * t->source_plane, .s_tap = t->source_plane, .s_h = t->pitch};
  lath_zero_slots(s->copies, planes, t->source_plane, t->pitch, 0, from);
  lath_load_images(t->kernels, t->source_dtype, &t->source, &part, s->images, &t->from, 0, s->source_planes, &copies);
  lath_zero_slots(s->copies, planes, t->source_plane, t->pitch, to, slots - to);
}

/* Target channels c .. c + channels - 1, all of their horizontal taps: `to` (rows of the product, pixels). */
static void multiply_copies(const struct strip *s, int64_t c, int64_t channels, float *to, int64_t s_to) {
  const struct lath_transposed *t = s->t;
  const int64_t across = t->to.taps, sources = t->from.taps * t->sources, first = s->phase->before * sources;
  const struct lath_panels b =
      lath_panels_listed(t->kernels, s->rows * t->pitch, s->phase->taps * sources, s->copies, t->source_rows + first);
  const struct lath_product product = {.m = channels * across,
                                       .a = t->turned + (s->group * t->targets + c) * across * t->s_turned + first,
                                       .s_a = t->s_turned,
                                       .b = &b,
                                       .start = LATH_START_ROWS,
                                       .c = to,
                                       .s_c = s_to,
                                       .scratch = s->scratch};
  lath_multiply(t->kernels, &product);
}

static void multiply_in_place(const struct strip *s, int64_t c, int64_t channels, float *to, int64_t s_to) {
  const struct lath_transposed *t = s->t;
  const int64_t across = t->to.taps, pixels = s->rows * t->pitch;
  const float *from =
      (const float *)t->source.data + s->n * t->source.s_n + s->group * t->sources * t->source.s_c + s->m * t->source.s_h;
  for (int64_t k = 0; k < t->sources; k += LATH_BLOCK_CHANNELS) {
    const int64_t sources = lath_smaller(LATH_BLOCK_CHANNELS, t->sources - k);
    if (c == 0) lath_fetch_rows(sources, pixels, from + k * t->source.s_c, t->source.s_c);
    const struct lath_panels b = lath_panels_in_place(t->kernels, pixels, sources, from + k * t->source.s_c, t->source.s_c);
    const struct lath_product product = {.m = channels * across,
                                         .a = t->turned + (s->group * t->targets + c) * across * t->s_turned + k,
                                         .s_a = t->s_turned,
                                         .b = &b,
                                         .start = k > 0 ? LATH_START_C : LATH_START_ROWS,
                                         .c = to,
                                         .s_c = s_to,
                                         .scratch = s->scratch};
    lath_multiply(t->kernels, &product);
  }
}

static void multiply(const struct strip *s, int64_t c, int64_t channels, float *to, int64_t s_to) {
  if (s->t->in_place)
    multiply_in_place(s, c, channels, to, s_to);
  else
    multiply_copies(s, c, channels, to, s_to);
}

/* Adds the horizontal taps up, straight into the target where its pixels are adjacent. */
static void write_target(const struct strip *s, int64_t c, int64_t channels) {
  const struct lath_transposed *t = s->t;
  for (int64_t k = 0; k < s->images; k++) {
    const struct lath_copies from = {
        .data = s->products + k * t->to.out, .s_c = t->to.taps * t->target_plane, .s_tap = t->target_plane, .s_h = t->pitch};
    const struct lath_part part = {.n = s->n + k,
                                   .channel = s->group * t->targets + c,
                                   .channels = channels,
                                   .first_row = target_row(s),
                                   .rows = s->rows,
                                   .step = t->stage->stride,
                                   .width = t->to.in};
    if (t->planes_size == 0) {
      float *to =
          (float *)t->target.data + part.n * t->target.s_n + part.channel * t->target.s_c + part.first_row * t->target.s_h;
      lath_gather_columns(t->kernels, &t->to, &from, channels, s->rows, to, t->target.s_c, t->target.s_h * part.step);
    } else {
      const struct lath_planes planes = {.data = s->planes, .s_c = s->rows * part.width, .s_h = part.width};
      lath_gather_columns(t->kernels, &t->to, &from, channels, s->rows, s->planes, planes.s_c, planes.s_h);
      lath_write_planes(t->kernels, t->target_dtype, &t->target, &part, &planes);
    }
  }
}

static void run_strip(const struct strip *s) {
  const struct lath_transposed *t = s->t;
  if (!t->in_place) load_sources(s);
  if (t->direct) {
    float *to =
        (float *)t->target.data + s->n * t->target.s_n + s->group * t->targets * t->target.s_c + target_row(s) * t->target.s_h;
    multiply(s, 0, t->targets, to, t->target.s_c);
    return;
  }
  for (int64_t c = 0; c < t->targets; c += t->block) {
    const int64_t channels = lath_smaller(t->block, t->targets - c);
    multiply(s, c, channels, s->products, t->target_plane);
    write_target(s, c, channels);
  }
}

/* Rows that no window meets. */
static void zero_strip(const struct strip *s) {
  const struct lath_transposed *t = s->t;
  memset(s->products, 0, (size_t)t->products_size * sizeof(float));
  for (int64_t c = 0; c < t->targets; c += t->block) write_target(s, c, lath_smaller(t->block, t->targets - c));
}

/* ---- units: some images, one residue, one strip of its rows --------------------------------------------------------------------------- */

static int64_t strips_of(const struct lath_transposed *t) {
  return lath_ceil_div(lath_ceil_div(t->stage->in, t->stage->stride), t->rows);
}

static void run_unit(struct strip *s, int64_t unit) {
  const struct lath_transposed *t = s->t;
  const int64_t strips = strips_of(t), strip = unit % strips, residue = unit / strips % t->stage->stride;
  const struct phase phase = phase_of(t->stage, residue);
  s->phase = &phase;
  s->n = unit / strips / t->stage->stride * t->images;
  s->images = lath_smaller(t->images, t->batch - s->n);
  s->m = phase.first + strip * t->rows;
  s->rows = lath_smaller(t->rows, phase.rows - strip * t->rows);
  for (s->group = 0; s->group < t->groups && s->rows > 0; s->group++) {
    if (phase.taps == 0)
      zero_strip(s);
    else
      run_strip(s);
  }
}

static void share_units(void *arg, int64_t begin, int64_t end) {
  const struct lath_transposed *t = arg;
  const int64_t units = lath_ceil_div(t->batch, t->images) * t->stage->stride * strips_of(t);
  for (int64_t w = begin; w < end; w++) {
    struct strip s = {.t = t,
                      .copies = t->copies + w * t->copies_size,
                      .source_planes = t->source_planes + w * t->source_planes_size,
                      .products = t->products + w * t->products_size,
                      .planes = t->planes + w * t->planes_size,
                      .scratch = t->scratch + w * t->scratch_size};
    for (int64_t unit = units * w / t->workers; unit < units * (w + 1) / t->workers; unit++) run_unit(&s, unit);
  }
}

lath_status lath_transposed_run(struct lath_transposed *t, const struct lath_host *host) {
  fill_lists(t);
  LATH_TRY(lath_host_run(host, t->workers, turn_weight, t));
  return lath_host_run(host, t->workers, share_units, t);
}
