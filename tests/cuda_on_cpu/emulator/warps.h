/* SPDX-License-Identifier: Apache-2.0
 * warps.h - shuffles, votes and reductions of a warp. */
#ifndef LATH_TESTS_CUDA_ON_CPU_WARPS_H
#define LATH_TESTS_CUDA_ON_CPU_WARPS_H

#include "engine.h"

/* ---- shuffles: `width` lanes (a power of two) are a group of their own --------------------------------------------------- */

template <class T>
T emulator_shuffle(unsigned mask, const char *operation, T value, unsigned source, emulator_site site) {
  static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes");
  emulator_exchange(mask, operation, &value, sizeof(T), source, site);
  return value;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
  const unsigned lane = emulator_lane(), last = (unsigned)width - 1;
  return emulator_shuffle(mask, "__shfl_sync", value, (lane & ~last) + ((unsigned)source & last), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const unsigned lane = emulator_lane(), first = lane & ~((unsigned)width - 1);
  return emulator_shuffle(mask, "__shfl_up_sync", value, lane >= first + delta ? lane - delta : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const unsigned lane = emulator_lane(), last = lane | ((unsigned)width - 1);
  return emulator_shuffle(mask, "__shfl_down_sync", value, lane + delta <= last ? lane + delta : lane, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_SITE) {
  const unsigned lane = emulator_lane(), last = lane | ((unsigned)width - 1), source = lane ^ (unsigned)bits;
  return emulator_shuffle(mask, "__shfl_xor_sync", value, source <= last ? source : lane, site);
}

/* ---- reductions and votes ------------------------------------------------------------------------------------------------ */

/* Every lane of the mask receives the fold of all values. */
template <class T, T (*fold)(T, T)>
void emulator_fold(void *const lane[32], unsigned mask) {
  const unsigned first = (unsigned)__builtin_ctz(mask);
  T all = *static_cast<T *>(lane[first]);
  for (unsigned i = first + 1; i < 32; i++)
    if (mask >> i & 1) all = fold(all, *static_cast<T *>(lane[i]));
  for (unsigned i = first; i < 32; i++)
    if (mask >> i & 1) *static_cast<T *>(lane[i]) = all;
}

#define EMULATOR_REDUCTION(name, type, expression)                                         \
  inline type emulator_##name(type a, type b) { return expression; }                       \
  inline type name(unsigned mask, type value, EMULATOR_SITE) {                             \
    emulator_warp(mask, #name, &value, emulator_fold<type, emulator_##name>, false, site); \
    return value;                                                                          \
  }
EMULATOR_REDUCTION(__reduce_add_sync, unsigned, a + b)
EMULATOR_REDUCTION(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
EMULATOR_REDUCTION(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATOR_REDUCTION(__reduce_min_sync, int, a < b ? a : b)
EMULATOR_REDUCTION(__reduce_max_sync, unsigned, a > b ? a : b)
EMULATOR_REDUCTION(__reduce_max_sync, int, a > b ? a : b)
EMULATOR_REDUCTION(__reduce_or_sync, unsigned, a | b)
EMULATOR_REDUCTION(__reduce_and_sync, unsigned, a &b)
EMULATOR_REDUCTION(__reduce_xor_sync, unsigned, a ^ b)
#undef EMULATOR_REDUCTION

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return __reduce_or_sync(mask, predicate ? 1u << emulator_lane() : 0u, site);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) { return __ballot_sync(mask, predicate, site) == mask; }

#endif
