/* SPDX-License-Identifier: Apache-2.0
 * conv_linear.c - a 1 x 1 convolution as a low-rank linear layer. Only the intermediate is laid out differently: (rank, pixels) of each
 * image here, (pixels, rank) there; it is thin, and turned on the way. With a stride, the pixels that are met are brought together
 * first, and their gradients spread out at last. */
#include "lowrank/conv_linear.h"

#include <string.h>

#include "core/arena.h"
#include "core/check.h"
#include "core/host.h"
#include "gemm/kernels.h"
#include "lowrank/conv.h"

/* ---- pixels as rows ---------------------------------------------------------------------------------------------------------------------- */

/* Pixels that are met, in one image: those of y. */
static int64_t met_rows(const struct lath_lowrank_conv2d *a) { return (a->height - 1) / a->stride_h + 1; }
static int64_t met_columns(const struct lath_lowrank_conv2d *a) { return (a->width - 1) / a->stride_w + 1; }
static int64_t met_pixels(const struct lath_lowrank_conv2d *a) { return met_rows(a) * met_columns(a); }

static int channels_are_adjacent(const struct lath_images *images, int64_t channels) {
  return images->s_w >= channels && (channels == 1 || images->s_c == 1);
}

/* Pixels at one distance, channels adjacent. */
static int are_rows(const struct lath_images *images, int64_t batch, int64_t height, int64_t width, int64_t channels) {
  if (!channels_are_adjacent(images, channels)) return 0;
  if (height > 1 && images->s_h != width * images->s_w) return 0;
  return batch <= 1 || images->s_n == height * width * images->s_w;
}

/* Of images like x; with a stride, any distance will do. */
static int are_pixels(const struct lath_lowrank_conv2d *a, const struct lath_images *images) {
  return lath_conv_is_1x1(a) ? are_rows(images, a->batch, a->height, a->width, a->in) : channels_are_adjacent(images, a->in);
}

/* Of images like y. */
static int are_met(const struct lath_lowrank_conv2d *a, const struct lath_images *images) {
  return are_rows(images, a->batch, met_rows(a), met_columns(a), a->out);
}

int lath_conv_is_linear(const struct lath_lowrank_conv2d *a, int backward) {
  if (!lath_conv_has_no_window(a) || a->groups != 1 || !are_pixels(a, &a->x)) return 0;
  if (!backward) return are_met(a, &a->y);
  return are_met(a, &a->dy) && (!a->dx.data || are_pixels(a, &a->dx));
}

/* ---- between all pixels and those that are met --------------------------------------------------------------------------------------------- */

struct motion {
  const struct lath_lowrank_conv2d *a;
  const struct lath_images *images;
  char *met; /* (batch, met pixels, in) */
};

static size_t row_bytes(const struct lath_lowrank_conv2d *a) { return (size_t)a->in * lath_dtype_size(a->dtype); }

static char *pixel(const struct motion *m, int64_t n, int64_t h, int64_t w) {
  const struct lath_images *i = m->images;
  return (char *)i->data + (size_t)(n * i->s_n + h * i->s_h + w * i->s_w) * lath_dtype_size(m->a->dtype);
}

static void bring_together(void *arg, int64_t begin, int64_t end) {
  const struct motion *m = arg;
  const struct lath_lowrank_conv2d *a = m->a;
  const size_t bytes = row_bytes(a);
  for (int64_t n = begin; n < end; n++) {
    char *to = m->met + (size_t)(n * met_pixels(a)) * bytes;
    for (int64_t h = 0; h < a->height; h += a->stride_h)
      for (int64_t w = 0; w < a->width; w += a->stride_w, to += bytes) memcpy(to, pixel(m, n, h, w), bytes);
  }
}

static void spread_out(void *arg, int64_t begin, int64_t end) {
  const struct motion *m = arg;
  const struct lath_lowrank_conv2d *a = m->a;
  const size_t bytes = row_bytes(a);
  for (int64_t n = begin; n < end; n++) {
    const char *from = m->met + (size_t)(n * met_pixels(a)) * bytes;
    for (int64_t h = 0; h < a->height; h++)
      for (int64_t w = 0; w < a->width; w++) {
        const int met = h % a->stride_h == 0 && w % a->stride_w == 0;
        if (met) memcpy(pixel(m, n, h, w), from, bytes), from += bytes;
        if (!met) memset(pixel(m, n, h, w), 0, bytes);
      }
  }
}

/* ---- the intermediate ---------------------------------------------------------------------------------------------------------------------- */

/* In the separable form it has the rows of x, and those that are not met are zero. */
static int64_t rows_of_p(const struct lath_lowrank_conv2d *a) { return a->form == LATH_SEPARABLE ? a->height : met_rows(a); }

static void turn_row(const struct lath_lowrank_conv2d *a, int64_t n, int64_t h, float *p, int to_planes) {
  const int64_t columns = met_columns(a), plane = rows_of_p(a) * columns;
  const int64_t row = a->form == LATH_SEPARABLE ? h * a->stride_h : h;
  float *here = (float *)a->p + n * a->rank * plane + row * columns, *there = p + (n * met_rows(a) + h) * columns * a->rank;
  if (to_planes)
    lath_kernels()->transpose(columns, a->rank, there, a->rank, here, plane);
  else
    lath_kernels()->transpose(a->rank, columns, here, plane, there, a->rank);
}

static void turn(const struct lath_lowrank_conv2d *a, float *p, int to_planes) {
  const int64_t pixels = met_pixels(a), size = pixels * a->rank;
  if (to_planes && rows_of_p(a) != met_rows(a))
    memset(a->p, 0, (size_t)(a->batch * a->rank * rows_of_p(a) * met_columns(a)) * sizeof(float));
  for (int64_t n = 0; n < a->batch; n++) {
    if (rows_of_p(a) != met_rows(a))
      for (int64_t h = 0; h < met_rows(a); h++) turn_row(a, n, h, p, to_planes);
    else if (to_planes)
      lath_kernels()->transpose(pixels, a->rank, p + n * size, a->rank, (float *)a->p + n * size, pixels);
    else
      lath_kernels()->transpose(a->rank, pixels, (const float *)a->p + n * size, pixels, p + n * size, a->rank);
  }
}

/* ---- the linear layer ---------------------------------------------------------------------------------------------------------------------- */

struct call {
  struct lath_lowrank_linear linear;
  float *p;      /* the intermediate, turned; or NULL */
  char *x, *dx;  /* pixels that are met, where a stride parts them; or NULL */
  size_t before; /* bytes of these in the workspace: what the linear layer needs comes behind them */
};

static char *take_met(const struct lath_lowrank_conv2d *a, struct lath_arena *arena) {
  const int64_t floats = (a->in * (int64_t)lath_dtype_size(a->dtype) + 3) / 4;
  return (char *)lath_take(arena, a->batch * met_pixels(a), floats);
}

static struct call as_linear(const struct lath_lowrank_conv2d *a, void *workspace) {
  struct lath_arena arena = lath_arena_on(workspace);
  const int parted = !lath_conv_is_1x1(a);
  struct call c = {.linear = {.dtype = a->dtype,
                              .association = LATH_FACTORED,
                              .rows = a->batch * met_pixels(a),
                              .in = a->in,
                              .rank = a->rank,
                              .out = a->out,
                              .x = a->x.data,
                              .s_x = parted ? a->in : a->x.s_w,
                              .v = a->v,
                              .s_v = a->in,
                              .u = a->u,
                              .s_u = a->rank,
                              .inner_bias = a->inner_bias,
                              .bias = a->bias,
                              .y = a->y.data,
                              .s_y = a->y.s_w,
                              .dy = a->dy.data,
                              .s_dy = a->dy.s_w,
                              .dx = a->dx.data,
                              .s_dx = parted ? a->in : a->dx.s_w,
                              .dv = a->dv,
                              .du = a->du,
                              .d_inner_bias = a->d_inner_bias,
                              .d_bias = a->d_bias}};
  if (a->p) c.p = lath_take(&arena, c.linear.rows, a->rank);
  if (parted) c.x = take_met(a, &arena);
  if (parted && a->dx.data) c.dx = take_met(a, &arena);
  c.before = arena.used;
  c.linear.p = workspace ? c.p : a->p;
  if (c.x) c.linear.x = c.x;
  if (c.dx) c.linear.dx = c.dx;
  if (!workspace) return c;
  c.linear.workspace = (char *)workspace + c.before;
  c.linear.workspace_bytes = a->workspace_bytes - c.before;
  return c;
}

lath_status lath_conv_linear_workspace(const struct lath_lowrank_conv2d *a, int backward, const struct lath_host *host,
                                       size_t *bytes) {
  const struct call c = as_linear(a, NULL);
  LATH_TRY(backward ? lath_lowrank_linear_backward_workspace(&c.linear, host, bytes)
                    : lath_lowrank_linear_workspace(&c.linear, host, bytes));
  return __builtin_add_overflow(*bytes, c.before, bytes) ? LATH_SIZE_OVERFLOW : LATH_OK;
}

static lath_status bring_x(const struct lath_lowrank_conv2d *a, const struct call *c, const struct lath_host *host) {
  struct motion m = {.a = a, .images = &a->x, .met = c->x};
  return c->x ? lath_host_run(host, a->batch, bring_together, &m) : LATH_OK;
}

lath_status lath_conv_linear(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  const struct call c = as_linear(a, a->workspace);
  LATH_TRY(bring_x(a, &c, host));
  LATH_TRY(lath_lowrank_linear(&c.linear, host));
  if (c.p) turn(a, c.p, 1);
  return LATH_OK;
}

lath_status lath_conv_linear_backward(const struct lath_lowrank_conv2d *a, const struct lath_host *host) {
  const struct call c = as_linear(a, a->workspace);
  LATH_TRY(bring_x(a, &c, host));
  if (c.p) turn(a, c.p, 0);
  LATH_TRY(lath_lowrank_linear_backward(&c.linear, host));
  struct motion m = {.a = a, .images = &a->dx, .met = c.dx};
  return c.dx ? lath_host_run(host, a->batch, spread_out, &m) : LATH_OK;
}
