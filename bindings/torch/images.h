/* SPDX-License-Identifier: Apache-2.0
 * images.h - batches of images: tensors (batch, channels, height, width) as struct lath_images, through their own strides. */
#ifndef LATH_IMAGES_H
#define LATH_IMAGES_H

#include "unpack.h"

/* The leading operand of a convolution: images of at least one pixel. */
bool unpack_images(struct call *call, int index, const char *name, struct tensor *tensor, struct lead *lead,
                   struct lath_images *images);

/* Images of these sizes and the dtype of the lead. */
bool unpack_images_like(struct call *call, int index, const char *name, const struct lead *lead, const int64_t sizes[4],
                        struct lath_images *images);

/* Whether torch's own convolutions would give a channels-last output for this input. */
bool images_channels_last(const struct tensor *tensor);

/* The next output. */
bool output_images(struct call *call, const char *name, const int64_t sizes[4], bool channels_last, lath_dtype dtype,
                   struct lath_images *images);

#endif
