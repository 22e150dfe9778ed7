/* SPDX-License-Identifier: Apache-2.0
 * atomics.h - atomic operations on one word: relaxed, as on the GPU, so they order nothing else. Each answers the old value. */
#ifndef LATH_TESTS_CUDA_ON_CPU_ATOMICS_H
#define LATH_TESTS_CUDA_ON_CPU_ATOMICS_H

/* Replaces *word by next(old) in one step. */
template <class T, class Next>
T emulator_atomic(T *word, Next next) {
  T old, now;
  __atomic_load(word, &old, __ATOMIC_RELAXED);
  do now = next(old);
  while (!__atomic_compare_exchange(word, &old, &now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

template <class T>
T atomicAdd(T *word, T value) {
  return emulator_atomic(word, [=](T old) { return (T)(old + value); });
}
template <class T>
T atomicMax(T *word, T value) {
  return emulator_atomic(word, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T *word, T value) {
  return emulator_atomic(word, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicOr(T *word, T value) {
  return emulator_atomic(word, [=](T old) { return (T)(old | value); });
}
template <class T>
T atomicExch(T *word, T value) {
  return emulator_atomic(word, [=](T) { return value; });
}
template <class T>
T atomicCAS(T *word, T expected, T value) {
  return emulator_atomic(word, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned *word, unsigned limit) {
  return emulator_atomic(word, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

#endif
