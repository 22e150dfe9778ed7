/* SPDX-License-Identifier: Apache-2.0
 * images.c - batches of images: tensors (batch, channels, height, width) as struct lath_images, through their own strides. */
#include "images.h"

#include <inttypes.h>

enum { BATCH, CHANNELS, HEIGHT, WIDTH };

static struct lath_images with_strides(const int64_t strides[4]) {
  return (struct lath_images){.s_n = strides[BATCH], .s_c = strides[CHANNELS], .s_h = strides[HEIGHT], .s_w = strides[WIDTH]};
}

static bool view(struct call *call, const struct tensor *tensor, struct lath_images *images) {
  const void *data;
  if (torch_get_const_data_ptr(tensor->handle, &data))
    return call_fail(call, tensor->name, "torch gives no pointer to its data");
  *images = with_strides(tensor->strides);
  images->data = (void *)(uintptr_t)data; /* the struct serves inputs and outputs; inputs are only read */
  return true;
}

bool unpack_images(struct call *call, int index, const char *name, struct tensor *tensor, struct lead *lead,
                   struct lath_images *images) {
  if (!unpack_tensor(call, index, name, tensor) || !unpack_lead(call, tensor, lead)) return false;
  if (tensor->dim != 4) return fail_shape(call, tensor, "(batch, in_channels, height, width)");
  if (tensor->sizes[HEIGHT] == 0 || tensor->sizes[WIDTH] == 0) return fail_shape(call, tensor, "images of at least one pixel");
  return view(call, tensor, images);
}

bool unpack_images_like(struct call *call, int index, const char *name, const struct lead *lead, const int64_t sizes[4],
                        struct lath_images *images) {
  struct tensor tensor;
  if (!unpack_tensor(call, index, name, &tensor) || !unpack_same_dtype(call, &tensor, lead)) return false;
  if (!has_sizes(&tensor, 4, sizes))
    return fail_shape(call, &tensor, "(%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "), the shape of the output",
                      sizes[BATCH], sizes[CHANNELS], sizes[HEIGHT], sizes[WIDTH]);
  return view(call, &tensor, images);
}

/* torch's rule: each stride reaches past the extents before it, in the order channels, width, height, batch; ambiguous strides
 * are contiguous ones. */
bool images_channels_last(const struct tensor *tensor) {
  static const int inner_first[] = {CHANNELS, WIDTH, HEIGHT, BATCH};
  const int64_t *sizes = tensor->sizes, *strides = tensor->strides;
  int64_t least = 0;
  if (strides[CHANNELS] == 0) return false;
  for (int i = 0; i < 4; i++) {
    const int axis = inner_first[i];
    if (sizes[axis] == 0 || strides[axis] < least) return false;
    if (axis == BATCH && least == strides[CHANNELS]) return false;
    if (__builtin_mul_overflow(strides[axis], sizes[axis], &least)) return false;
  }
  return true;
}

/* As torch counts them: an extent of 0 counts as 1 where channels come first, as 0 where they come last. Overflow wraps: such a
 * tensor is refused when it is made. */
static void dense_strides(const int64_t sizes[4], bool channels_last, int64_t strides[4]) {
  static const int orders[2][4] = {{WIDTH, HEIGHT, CHANNELS, BATCH}, {CHANNELS, WIDTH, HEIGHT, BATCH}};
  int64_t stride = 1;
  for (int i = 0; i < 4; i++) {
    const int axis = orders[channels_last][i];
    strides[axis] = stride;
    (void)__builtin_mul_overflow(stride, channels_last || sizes[axis] > 0 ? sizes[axis] : 1, &stride);
  }
}

bool output_images(struct call *call, const char *name, const int64_t sizes[4], bool channels_last, lath_dtype dtype,
                   struct lath_images *images) {
  int64_t strides[4];
  dense_strides(sizes, channels_last, strides);
  *images = with_strides(strides);
  return call_output_strided(call, name, 4, sizes, strides, dtype, &images->data);
}
