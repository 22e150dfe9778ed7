/* SPDX-License-Identifier: Apache-2.0
 * images.c - between images of any layout and type, and planes of floats. */
#include "gemm/images.h"

#include <string.h>

#include "core/bf16.h"
#include "core/integers.h"

void lath_fetch_rows(int64_t rows, int64_t width, const float *data, int64_t stride) {
  for (int64_t h = 0; h < rows; h++)
    for (int64_t w = 0; w < width; w += LATH_CACHE_LINE / (int64_t)sizeof *data)
      __builtin_prefetch(data + h * stride + w, 0, 3);
}

/* ---- reading and writing ---------------------------------------------------------------------------------------------------------------- */

static int64_t element(const struct lath_images *images, const struct lath_part *part) {
  return part->n * images->s_n + part->channel * images->s_c + part->first_row * images->s_h;
}

static int reads_in_place(lath_dtype dtype, const struct lath_images *images, int64_t width) {
  return dtype == LATH_F32 && (images->s_w == 1 || width == 1);
}

int64_t lath_planes_copy(lath_dtype dtype, const struct lath_images *images, int64_t channels, int64_t rows, int64_t width) {
  return reads_in_place(dtype, images, width) ? 0 : channels * rows * width;
}

int lath_images_are_planes(lath_dtype dtype, const struct lath_images *images, int64_t width) {
  return reads_in_place(dtype, images, width) && images->s_h == width;
}

static void read_pixels(const uint16_t *src, int64_t s_c, int64_t s_h, int64_t s_w, const struct lath_part *part, float *dst) {
  for (int64_t c = 0; c < part->channels; c++)
    for (int64_t h = 0; h < part->rows; h++)
      for (int64_t w = 0; w < part->width; w++) *dst++ = lath_bf16_to_f32(src[c * s_c + h * s_h + w * s_w]);
}

static void read_floats(const float *src, int64_t s_c, int64_t s_h, int64_t s_w, const struct lath_part *part, float *dst) {
  for (int64_t c = 0; c < part->channels; c++)
    for (int64_t h = 0; h < part->rows; h++)
      for (int64_t w = 0; w < part->width; w++) *dst++ = src[c * s_c + h * s_h + w * s_w];
}

struct lath_planes lath_read_planes(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                                    const struct lath_part *part, float *copy) {
  const int64_t at = element(images, part), s_h = images->s_h * part->step;
  const float *src = (const float *)images->data + at;
  if (reads_in_place(dtype, images, part->width)) return (struct lath_planes){.data = src, .s_c = images->s_c, .s_h = s_h};
  if (dtype == LATH_BF16)
    read_pixels((const uint16_t *)images->data + at, images->s_c, s_h, images->s_w, part, copy);
  else if (images->s_c == 1 && s_h == part->width * images->s_w)
    kernels->transpose(part->rows * part->width, part->channels, src, images->s_w, copy, part->rows * part->width);
  else if (images->s_c == 1)
    for (int64_t h = 0; h < part->rows; h++)
      kernels->transpose(part->width, part->channels, src + h * s_h, images->s_w, copy + h * part->width,
                         part->rows * part->width);
  else
    read_floats(src, images->s_c, s_h, images->s_w, part, copy);
  return (struct lath_planes){.data = copy, .s_c = part->rows * part->width, .s_h = part->width};
}

static void write_pixels(const struct lath_planes *planes, const struct lath_part *part, uint16_t *dst, int64_t s_c,
                         int64_t s_h, int64_t s_w) {
  for (int64_t c = 0; c < part->channels; c++)
    for (int64_t h = 0; h < part->rows; h++)
      for (int64_t w = 0; w < part->width; w++)
        dst[c * s_c + h * s_h + w * s_w] = lath_f32_to_bf16(planes->data[c * planes->s_c + h * planes->s_h + w]);
}

static void write_floats(const struct lath_planes *planes, const struct lath_part *part, float *dst, int64_t s_c, int64_t s_h,
                         int64_t s_w) {
  for (int64_t c = 0; c < part->channels; c++)
    for (int64_t h = 0; h < part->rows; h++)
      for (int64_t w = 0; w < part->width; w++)
        dst[c * s_c + h * s_h + w * s_w] = planes->data[c * planes->s_c + h * planes->s_h + w];
}

void lath_write_planes(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                       const struct lath_part *part, const struct lath_planes *planes) {
  const int64_t at = element(images, part), s_h = images->s_h * part->step;
  float *dst = (float *)images->data + at;
  if (dtype == LATH_BF16)
    write_pixels(planes, part, (uint16_t *)images->data + at, images->s_c, s_h, images->s_w);
  else if (images->s_w == 1)
    kernels->copy_rows(part->channels, part->rows, part->width, 0, part->width, planes->data, planes->s_c, planes->s_h, 1, dst,
                       images->s_c, s_h);
  else if (images->s_c == 1 && s_h == part->width * images->s_w && planes->s_h == part->width)
    kernels->transpose(part->channels, part->rows * part->width, planes->data, planes->s_c, dst, images->s_w);
  else if (images->s_c == 1)
    for (int64_t h = 0; h < part->rows; h++)
      kernels->transpose(part->channels, part->width, planes->data + h * planes->s_h, planes->s_c, dst + h * s_h, images->s_w);
  else
    write_floats(planes, part, dst, images->s_c, s_h, images->s_w);
}

/* ---- horizontal taps --------------------------------------------------------------------------------------------------------------------- */

/* Output pixels [from, to) of tap j meet the row; the others meet its padding. */
static int64_t reach(const struct lath_columns *c, int64_t j, int64_t *from, int64_t *to) {
  const int64_t shift = j * c->dilation - c->pad;
  *from = lath_smaller(lath_ceil_div(lath_larger(-shift, 0), c->stride), c->out);
  *to = lath_smaller(lath_ceil_div(lath_larger(c->in - shift, 0), c->stride), c->out);
  if (*to < *from) *to = *from;
  return shift;
}

void lath_columns_take(struct lath_columns *c, const struct lath_kernels *kernels, int64_t rows, struct lath_arena *arena) {
  if (c->stride != 1 || c->in != c->out) return;
  c->vectors = (rows * c->out + kernels->lanes - 1) / kernels->lanes;
  c->lanes_of = (uint32_t *)(void *)lath_take(arena, c->taps, c->vectors);
}

void lath_columns_fill(const struct lath_columns *c, const struct lath_kernels *kernels) {
  for (int64_t j = 0; c->lanes_of && j < c->taps; j++) {
    const int64_t shift = j * c->dilation - c->pad;
    for (int64_t v = 0; v < c->vectors; v++) {
      uint32_t bits = 0;
      for (int64_t i = 0; i < kernels->lanes; i++) {
        const int64_t w = (v * kernels->lanes + i) % c->out + shift;
        bits |= (uint32_t)(w >= 0 && w < c->in) << i;
      }
      c->lanes_of[j * c->vectors + v] = bits;
    }
  }
}

/* One tap of some planes. */
static void spread_tap(const struct lath_kernels *kernels, const struct lath_columns *columns, int64_t j, const float *data,
                       const struct lath_planes *planes, int64_t channels, int64_t rows, const struct lath_copies *to,
                       float *dst) {
  int64_t first, last;
  const int64_t shift = reach(columns, j, &first, &last);
  if (columns->lanes_of && planes->s_h == columns->in && to->s_h == columns->out)
    kernels->copy_masked(channels, rows * columns->out, columns->lanes_of + j * columns->vectors, data + shift, planes->s_c,
                         dst + j * to->s_tap, to->s_c);
  else
    kernels->copy_rows(channels, rows, columns->out, first, last, data + shift, planes->s_c, planes->s_h, columns->stride,
                       dst + j * to->s_tap, to->s_c, to->s_h);
}

/* A few channels at a time: their rows stay in L1 from one tap to the next. */
#define SPREAD_CHANNELS 4

void lath_spread_columns(const struct lath_kernels *kernels, const struct lath_columns *columns,
                         const struct lath_planes *planes, int64_t channels, int64_t rows, int64_t ahead,
                         const struct lath_copies *to) {
  for (int64_t c = 0; c < channels; c += SPREAD_CHANNELS) {
    const int64_t count = lath_smaller(SPREAD_CHANNELS, channels - c);
    const float *data = planes->data + c * planes->s_c;
    for (int64_t k = 0; ahead && k < count; k++)
      lath_fetch_rows(rows, columns->in, data + k * planes->s_c + ahead, planes->s_h);
    for (int64_t j = 0; j < columns->taps; j++)
      spread_tap(kernels, columns, j, data, planes, count, rows, to, to->data + c * to->s_c);
  }
}

/* Channels-last images that are copied once: turned on their way, with no planes between. */
static int is_turned_into_place(lath_dtype dtype, const struct lath_images *images, const struct lath_columns *columns) {
  return dtype == LATH_F32 && images->s_c == 1 && images->s_w != 1 && columns->taps == 1 && columns->stride == 1;
}

static void turn_into_place(const struct lath_kernels *kernels, const struct lath_images *images, const struct lath_part *part,
                            const struct lath_columns *columns, const struct lath_copies *to) {
  int64_t first, last;
  const int64_t shift = reach(columns, 0, &first, &last), s_h = images->s_h * part->step;
  const float *src = (const float *)images->data + element(images, part) + (first + shift) * images->s_w;
  if (last - first == to->s_h && s_h == to->s_h * images->s_w) {
    kernels->transpose(part->rows * to->s_h, part->channels, src, images->s_w, to->data, to->s_c);
    return;
  }
  for (int64_t h = 0; h < part->rows; h++)
    kernels->transpose(last - first, part->channels, src + h * s_h, images->s_w, to->data + h * to->s_h + first, to->s_c);
  kernels->copy_rows(part->channels, part->rows, first, 0, 0, src, 0, 0, 1, to->data, to->s_c, to->s_h);
  kernels->copy_rows(part->channels, part->rows, columns->out - last, 0, 0, src, 0, 0, 1, to->data + last, to->s_c, to->s_h);
}

void lath_load_images(const struct lath_kernels *kernels, lath_dtype dtype, const struct lath_images *images,
                      const struct lath_part *part, int64_t count, const struct lath_columns *columns, int64_t ahead,
                      float *planes, const struct lath_copies *to) {
  struct lath_part one = *part;
  struct lath_copies place = *to;
  for (; one.n < part->n + count; one.n++, place.data += columns->out) {
    if (is_turned_into_place(dtype, images, columns)) {
      turn_into_place(kernels, images, &one, columns, &place);
    } else {
      const struct lath_planes read = lath_read_planes(kernels, dtype, images, &one, planes);
      lath_spread_columns(kernels, columns, &read, part->channels, part->rows, read.data == planes ? 0 : ahead, &place);
    }
  }
}

void lath_zero_slots(float *planes, int64_t count, int64_t plane, int64_t pitch, int64_t slot, int64_t slots) {
  if (slots <= 0) return;
  for (int64_t k = 0; k < count; k++) memset(planes + k * plane + slot * pitch, 0, (size_t)(slots * pitch) * sizeof *planes);
}

int64_t lath_plane_size(int64_t floats) {
  const int64_t line = LATH_CACHE_LINE / (int64_t)sizeof(float), lines = (floats + line - 1) / line;
  return (lines + !(lines & 1)) * line;
}

static void gather_strided(const struct lath_kernels *kernels, const struct lath_columns *columns, const float *copies,
                           int64_t s_tap, int64_t s_h, int64_t rows, float *plane, int64_t s_plane) {
  for (int64_t h = 0; h < rows; h++) memset(plane + h * s_plane, 0, (size_t)columns->in * sizeof *plane);
  for (int64_t j = 0; j < columns->taps; j++) {
    int64_t first, last;
    const int64_t shift = reach(columns, j, &first, &last);
    kernels->add_to_rows(rows, first, last, copies + j * s_tap, s_h, plane + shift, s_plane, columns->stride);
  }
}

void lath_gather_columns(const struct lath_kernels *kernels, const struct lath_columns *columns, const struct lath_copies *from,
                         int64_t channels, int64_t rows, float *planes, int64_t s_c, int64_t s_h) {
  for (int64_t c = 0; c < channels; c++) {
    const float *copies = from->data + c * from->s_c;
    if (columns->stride == 1)
      kernels->sum_rows(rows, columns->in, columns->taps, columns->pad, columns->dilation, columns->out, copies, from->s_tap,
                        from->s_h, planes + c * s_c, s_h);
    else
      gather_strided(kernels, columns, copies, from->s_tap, from->s_h, rows, planes + c * s_c, s_h);
  }
}
