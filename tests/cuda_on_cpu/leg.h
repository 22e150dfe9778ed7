// SPDX-License-Identifier: Apache-2.0
//
// leg.h - which of the three builds this is: without sanitizers, with the address one, with the thread one.

#ifndef LATH_TESTS_CUDA_ON_CPU_LEG_H_
#define LATH_TESTS_CUDA_ON_CPU_LEG_H_

namespace cuda_test {

enum class Leg { kPlain, kAddress, kThread };

#if defined(__SANITIZE_THREAD__)
constexpr Leg kLeg = Leg::kThread;
#elif defined(__SANITIZE_ADDRESS__)
constexpr Leg kLeg = Leg::kAddress;
#else
constexpr Leg kLeg = Leg::kPlain;
#endif

}  // namespace cuda_test

#endif  // LATH_TESTS_CUDA_ON_CPU_LEG_H_
