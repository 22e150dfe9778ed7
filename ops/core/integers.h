/* SPDX-License-Identifier: Apache-2.0
 * integers.h - inside the library: extents compared and divided. */
#ifndef LATH_CORE_INTEGERS_H
#define LATH_CORE_INTEGERS_H

#include <stdint.h>

static inline int64_t lath_smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t lath_larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t lath_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; } /* of a >= 0 */

#endif
