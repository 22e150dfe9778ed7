// SPDX-License-Identifier: Apache-2.0
//
// test_lowrank_frobenius.cc - || u v ||_F^2 and its gradients on the device.

#include "lowrank_cases.h"

namespace cuda_test {
namespace {

using lath_test::FrobeniusArgs;
using lath_test::FrobeniusInputs;

lath_dtype SumType(lath_dtype dtype) { return dtype == LATH_F64 ? LATH_F64 : LATH_F32; }

void Check(const FrobeniusInputs &inputs, bool blas, double scale, unsigned gradients) {
  const lath_dtype sums = SumType(inputs.dtype);
  const int64_t in = inputs.v.cols(), rank = inputs.v.rows(), out = inputs.u.rows();
  struct {
    lath_status status;
    bool workspace_intact;
  } run;
  Operand gram_v(sums, rank, rank), gram_u(sums, rank, rank), value(sums, 1, 1), factor(sums, 1, 1);
  Operand dv(inputs.dtype, rank, in), du(inputs.dtype, out, rank);
  factor.Set(0, 0, scale);
  const OnDevice v(inputs.v), u(inputs.u), gram_v_device(gram_v), gram_u_device(gram_u), value_device(value),
      scale_device(factor), dv_device(dv), du_device(du);
  DeviceOptions options;
  options.blas = blas;
  Lent lent(options);
  FrobeniusArgs args = Arguments(inputs);
  args.v = v.data(), args.u = u.data();
  args.gram_v = gram_v_device.data(), args.gram_u = gram_u_device.data();
  CallOnDevice(
      &args, options, &lent, lath_cuda_frobenius_workspace,
      [&](const FrobeniusArgs *a, lath_cuda *cuda) { return lath_cuda_frobenius(a, value_device.data(), cuda); }, &run);
  ASSERT_TRUE(Completed(run));
  args.dv = gradients & lath_test::kDv ? dv_device.data() : nullptr;
  args.du = gradients & lath_test::kDu ? du_device.data() : nullptr;
  CallOnDevice(
      &args, options, &lent, lath_cuda_frobenius_workspace,
      [&](const FrobeniusArgs *a, lath_cuda *cuda) { return lath_cuda_frobenius_backward(a, scale_device.data(), cuda); },
      &run);
  ASSERT_TRUE(Completed(run));
  gram_v_device.CopyTo(&gram_v);
  gram_u_device.CopyTo(&gram_u);
  value_device.CopyTo(&value);
  dv_device.CopyTo(&dv);
  du_device.CopyTo(&du);

  const std::string what = lath_test::Describe(inputs.dtype, {0, in, rank, out}) + " blas " + std::to_string(blas);
  const Values want_gram_v = inputs.GramV(), want_gram_u = inputs.GramU();
  EXPECT_TRUE(Exactly(gram_v, want_gram_v)) << what;
  EXPECT_TRUE(Exactly(gram_u, want_gram_u)) << what;
  double sum = 0;
  for (size_t k = 0; k < want_gram_v.size(); ++k) sum += want_gram_v[k] * want_gram_u[k];
  EXPECT_TRUE(Exactly(value, {sum})) << what;
  const Values want_du = Scaled(Multiply(inputs.u.Read(), want_gram_v, out, rank, rank), 2 * scale);
  const Values want_dv = Scaled(Multiply(want_gram_u, inputs.v.Read(), rank, rank, in), 2 * scale);
  EXPECT_TRUE(gradients & lath_test::kDu ? Exactly(du, want_du) : testing::AssertionResult(du.Untouched())) << "du " << what;
  EXPECT_TRUE(gradients & lath_test::kDv ? Exactly(dv, want_dv) : testing::AssertionResult(dv.Untouched())) << "dv " << what;
}

TEST(FrobeniusOnDevice, IsExactOnIntegers) {
  Choices choices(1);
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t rank : {0, 1, 2, 15, 16, 17, 33, 65}) {
      if (LeftOut(choices.Next())) continue;
      Layout layout;
      layout.gap = choices.Below(5);
      layout.misalignment = choices.Below(3);
      emulator_order(choices.Next() % 4);
      const FrobeniusInputs inputs(dtype, choices.From({0, 1, 20, 64, 70}), rank, choices.From({0, 1, 30, 65}),
                                   Numbers::kIntegers, choices.Next(), layout, layout);
      Check(inputs, choices.OneIn(2), 0.5, static_cast<unsigned>(choices.Below(4)) * lath_test::kDv);
    }
  }
  emulator_order(0);
}

TEST(FrobeniusOnDevice, SumsManyNumbersInEveryOrder) {
  for (const lath_dtype dtype : {LATH_F32, LATH_BF16}) {
    const FrobeniusInputs inputs(dtype, 3, kLeg == Leg::kThread ? 30 : 300, 2, Numbers::kIntegers, 7);
    if (kLeg == Leg::kThread && dtype != LATH_F32) continue;
    EachOrder([&](unsigned) { Check(inputs, true, -2, 0); });
  }
}

TEST(FrobeniusOnDevice, RefusesWhatIsMissing) {
  const FrobeniusInputs inputs(LATH_F32, 4, 3, 5, Numbers::kIntegers, 1);
  const OnDevice v(inputs.v), u(inputs.u);
  const Guarded gram(36), scalar(4), workspace(1 << 16);
  Lent lent((DeviceOptions()));
  FrobeniusArgs args = Arguments(inputs);
  args.v = v.data(), args.u = u.data(), args.gram_v = args.gram_u = gram.data();
  EXPECT_EQ(lath_cuda_frobenius_workspace(&args, nullptr, &args.workspace_bytes), LATH_INVALID_ARGUMENT);
  ASSERT_EQ(lath_cuda_frobenius_workspace(&args, lent.get(), &args.workspace_bytes), LATH_OK);
  args.workspace = workspace.data();
  EXPECT_EQ(lath_cuda_frobenius(&args, nullptr, lent.get()), LATH_INVALID_ARGUMENT);
  EXPECT_EQ(lath_cuda_frobenius_backward(&args, nullptr, lent.get()), LATH_INVALID_ARGUMENT);
  args.workspace_bytes--;
  EXPECT_EQ(lath_cuda_frobenius(&args, scalar.data(), lent.get()), LATH_SMALL_WORKSPACE);
  args.workspace_bytes++;
  args.gram_u = nullptr;
  EXPECT_EQ(lath_cuda_frobenius(&args, scalar.data(), lent.get()), LATH_INVALID_ARGUMENT);
  args.gram_u = gram.data(), args.rank = -1;
  EXPECT_EQ(lath_cuda_frobenius(&args, scalar.data(), lent.get()), LATH_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace cuda_test
