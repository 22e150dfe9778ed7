/* SPDX-License-Identifier: Apache-2.0
 * host.h - torch's intra-op thread pool as the host services of liblath. */
#ifndef LATH_HOST_H
#define LATH_HOST_H

#include "lath.h"

extern const struct lath_host torch_host;

#endif
