// SPDX-License-Identifier: Apache-2.0
//
// test_products.cc - one product on the device, by cuBLAS and by our own kernel, with every transposition, type, stride and
// start; and the sums of rows.

#include "core/device.h"
#include "gemm/product.h"
#include "gemm/rows.h"
#include "lowrank_cases.h"

namespace cuda_test {
namespace {

// How a product is stored.
struct Form {
  lath_dtype a, b, c;
  bool a_transposed, b_transposed, with_bias, accumulate, blas;
};

Operand Filled(lath_dtype dtype, int64_t rows, int64_t cols, Layout layout, uint32_t seed) {
  Operand operand(dtype, rows, cols, layout);
  FillWith(&operand, Numbers::kIntegers, seed);
  return operand;
}

// c (m, n) = start + a (m, k) b (k, n), where start is the old c, the bias in each row or 0.
void CheckProduct(const Form &form, int64_t m, int64_t n, int64_t k, uint32_t seed) {
  if (LeftOut(seed)) return;
  Choices choices(seed);
  emulator_order(choices.Next() % 4);
  const Operand a = Filled(form.a, form.a_transposed ? k : m, form.a_transposed ? m : k, RandomLayout(&choices, true), seed);
  const Operand b =
      Filled(form.b, form.b_transposed ? n : k, form.b_transposed ? k : n, RandomLayout(&choices, true), seed + 1);
  const Operand bias = Filled(form.c, 1, n, {}, seed + 2);
  Operand c(form.c, m, n, RandomLayout(&choices, false));
  if (form.accumulate) FillWith(&c, Numbers::kIntegers, seed + 3);

  Values want = Multiply(form.a_transposed ? Transpose(a.Read(), k, m) : a.Read(),
                         form.b_transposed ? Transpose(b.Read(), n, k) : b.Read(), m, k, n);
  const Values start = c.Read(), row = bias.Read();
  for (size_t i = 0; i < want.size(); ++i) want[i] += form.accumulate ? start[i] : form.with_bias ? row[i % row.size()] : 0;

  const OnDevice a_device(a), b_device(b), bias_device(bias), c_device(c);
  DeviceOptions options;
  options.blas = form.blas;
  Lent lent(options);
  const lath_cuda_gemm product = {form.a,
                                  form.b,
                                  form.c,
                                  m,
                                  n,
                                  k,
                                  a_device.data(),
                                  a.stride(),
                                  form.a_transposed,
                                  b_device.data(),
                                  b.stride(),
                                  form.b_transposed,
                                  form.with_bias ? bias_device.data() : nullptr,
                                  c_device.data(),
                                  c.stride(),
                                  form.accumulate,
                                  nullptr,
                                  0};
  ASSERT_EQ(lath_cuda_product(&product, lent.get()), LATH_OK) << lath_cuda_error_text(lent.get()->error);
  c_device.CopyTo(&c);
  EXPECT_TRUE(Exactly(c, want)) << "types " << form.a << form.b << form.c << " transposed " << form.a_transposed
                                << form.b_transposed << " bias " << form.with_bias << " accumulate " << form.accumulate
                                << " blas " << form.blas << " m " << m << " n " << n << " k " << k;
  emulator_order(0);
}

lath_cuda_gemm FloatProduct(int64_t m, int64_t n, int64_t k, const void *a, int64_t s_a, bool a_transposed, const void *b,
                            int64_t s_b, bool b_transposed, void *c, int64_t s_c) {
  lath_cuda_gemm product = {};
  product.m = m, product.n = n, product.k = k;
  product.a = a, product.s_a = s_a, product.a_transposed = a_transposed;
  product.b = b, product.s_b = s_b, product.b_transposed = b_transposed;
  product.c = c, product.s_c = s_c;
  return product;
}

constexpr lath_dtype kTypes[][3] = {
    {LATH_F32, LATH_F32, LATH_F32},    {LATH_F64, LATH_F64, LATH_F64},   {LATH_F16, LATH_F16, LATH_F16},
    {LATH_BF16, LATH_BF16, LATH_BF16}, {LATH_F16, LATH_F16, LATH_F32},   {LATH_BF16, LATH_BF16, LATH_F32},
    {LATH_F32, LATH_F16, LATH_F16},    {LATH_F32, LATH_BF16, LATH_BF16}, {LATH_F16, LATH_F32, LATH_F16},
    {LATH_BF16, LATH_F32, LATH_BF16},
};

TEST(Product, IsExactInEveryForm) {
  Choices choices(1);
  const std::vector<int64_t> edges = {1, 2, 15, 16, 17, 33, 63, 64, 65, 100, 129};
  for (const auto &types : kTypes) {
    for (unsigned bits = 0; bits < 24; ++bits) {
      const bool transposed_a = bits & 1, transposed_b = bits & 2, blas = bits & 4;
      const Form form = {types[0], types[1], types[2], transposed_a, transposed_b, bits / 8 == 1, bits / 8 == 2, blas};
      CheckProduct(form, choices.From(edges), choices.From(edges), choices.From(edges), choices.Next());
    }
  }
}

TEST(Product, IsExactAtEveryTileEdge) {
  Choices choices(2);
  for (const int64_t m : {1, 63, 64, 65, 130}) {
    for (const int64_t n : {1, 63, 64, 65, 130}) {
      for (const int64_t k : {0, 1, 15, 16, 17}) {
        const Form form = {LATH_F32, LATH_F32, LATH_F32, choices.OneIn(2), choices.OneIn(2), choices.OneIn(2), false, false};
        CheckProduct(form, m, n, k, choices.Next());
      }
    }
  }
}

// A single row may have any stride, as torch gives them, also one that cuBLAS would refuse as a leading dimension.
TEST(Product, TakesTheStrideOfASingleRowAsItIs) {
  for (const bool blas : {false, true}) {
    const Operand a = Filled(LATH_F32, 1, 20, {}, 1), b = Filled(LATH_F32, 1, 20, {}, 2);
    Operand c(LATH_F32, 1, 1);
    const OnDevice a_device(a), b_device(b), c_device(c);
    DeviceOptions options;
    options.blas = blas;
    Lent lent(options);
    const lath_cuda_gemm product = {LATH_F32, LATH_F32, LATH_F32,        1, 1, 20,      a_device.data(),
                                    0,        0,        b_device.data(), 1, 1, nullptr, c_device.data(),
                                    0,        0,        nullptr,         0};
    ASSERT_EQ(lath_cuda_product(&product, lent.get()), LATH_OK);
    c_device.CopyTo(&c);
    EXPECT_TRUE(Exactly(c, Multiply(a.Read(), b.Read(), 1, 20, 1)));
  }
}

// An expanded operand has row stride 0, which cuBLAS does not take: our own kernel does.
TEST(Product, TakesRepeatedRows) {
  for (const bool transposed : {false, true}) {
    Layout repeated;
    repeated.repeat_row = true;
    const Operand a = Filled(LATH_F32, 30, 20, repeated, 1), b = Filled(LATH_F32, 20, 10, {}, 2);
    const int64_t m = transposed ? 20 : 30, k = transposed ? 30 : 20;
    const Operand other = Filled(LATH_F32, k, 10, {}, 3);
    Operand c(LATH_F32, m, 10);
    const OnDevice a_device(a), b_device(other), c_device(c);
    Lent lent((DeviceOptions()));
    const lath_cuda_gemm product = {LATH_F32, LATH_F32,   LATH_F32,        m,  10, k,       a_device.data(),
                                    0,        transposed, b_device.data(), 10, 0,  nullptr, c_device.data(),
                                    10,       0,          nullptr,         0};
    ASSERT_EQ(lath_cuda_product(&product, lent.get()), LATH_OK);
    c_device.CopyTo(&c);
    EXPECT_TRUE(Exactly(c, Multiply(transposed ? Transpose(a.Read(), 30, 20) : a.Read(), other.Read(), m, k, 10)));
  }
}

TEST(Linear, IsExactAtTileEdges) {
  Choices choices(3);
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t rows : {0, 1, 17, 65}) {
      for (const int64_t width : {0, 1, 33, 64, 100}) {
        if (LeftOut(choices.Next())) continue;
        const lath_test::LinearInputs inputs(dtype, rows, width, choices.From({0, 1, 7, 64, 70}), choices.OneIn(2),
                                             Numbers::kIntegers, choices.Next(), RandomLayout(&choices, true),
                                             RandomLayout(&choices, true));
        lath_test::LinearRun run = {LATH_OK, true, Operand(dtype, rows, inputs.w.rows(), RandomLayout(&choices, false))};
        const OnDevice x(inputs.x), w(inputs.w), bias(inputs.bias), y(run.y);
        DeviceOptions options;
        options.blas = choices.OneIn(2);
        Lent lent(options);
        lath_test::LinearArgs args = Arguments(inputs);
        args.x = x.data(), args.w = w.data(), args.y = y.data(), args.s_y = run.y.stride();
        args.bias = inputs.has_bias ? bias.data() : nullptr;
        CallOnDevice(&args, options, &lent, lath_cuda_linear_workspace, lath_cuda_linear, &run);
        ASSERT_TRUE(Completed(run));
        y.CopyTo(&run.y);
        EXPECT_TRUE(Exactly(run.y, OracleOf(inputs).P())) << lath_test::Describe(dtype, OracleOf(inputs).shape);
      }
    }
  }
}

// ---- sums of rows ----------------------------------------------------------------------------------------------------

TEST(SumRows, IsExactInEveryTypeAndOrder) {
  Choices choices(4);
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t rows : {0, 1, 7, 8, 9, 127, 128, 300}) {
      for (const int64_t cols : {1, 31, 32, 33, 70}) {
        if (LeftOut(choices.Next())) continue;
        emulator_order(choices.Next() % 4);
        const Operand a = Filled(dtype, rows, cols, RandomLayout(&choices, true), choices.Next());
        Operand sums(dtype, 1, cols);
        const OnDevice a_device(a), sums_device(sums);
        const int multiprocessors = 132;
        const lath_dtype kept = lath_sum_type(dtype);
        const Guarded partial(static_cast<size_t>(lath_cuda_sum_rows_parts(rows, cols, multiprocessors) * cols) *
                              lath_dtype_size(kept));
        ASSERT_EQ(lath_cuda_sum_rows(dtype, rows, cols, a_device.data(), a.stride(), sums_device.data(), partial.data(),
                                     multiprocessors, nullptr),
                  cudaSuccess);
        sums_device.CopyTo(&sums);
        EXPECT_TRUE(partial.Intact());
        const Values ones(static_cast<size_t>(rows), 1.0);
        EXPECT_TRUE(Exactly(sums, Multiply(ones, a.Read(), 1, rows, cols))) << "rows " << rows << " cols " << cols;
      }
    }
  }
  emulator_order(0);
}

TEST(SumRows, UsesSeveralPartsForManyRows) {
  EXPECT_EQ(lath_cuda_sum_rows_parts(64, 32, 132), 1);
  EXPECT_GT(lath_cuda_sum_rows_parts(4096, 32, 132), 1);
  EXPECT_LE(lath_cuda_sum_rows_parts(4096, 32, 132), 64);       // at least 64 rows each
  EXPECT_EQ(lath_cuda_sum_rows_parts(4096, 32 * 600, 132), 1);  // the columns alone fill the device
  EXPECT_GE(lath_cuda_sum_rows_parts(0, 0, 132), 1);
}

// ---- failures --------------------------------------------------------------------------------------------------------

#if !defined(LATH_TESTS_ON_GPU)
TEST(Product, ReportsALaunchThatFails) {
  const Operand a = Filled(LATH_F32, 4, 4, {}, 1);
  Operand c(LATH_F32, 4, 4);
  const OnDevice a_device(a), c_device(c);
  DeviceOptions options;
  options.blas = false;
  Lent lent(options);
  const lath_cuda_gemm product = {LATH_F32, LATH_F32, LATH_F32,        4, 4, 4,       a_device.data(),
                                  4,        0,        a_device.data(), 4, 0, nullptr, c_device.data(),
                                  4,        0,        nullptr,         0};
  emulator_fail_launch(1, cudaErrorLaunchOutOfResources);
  EXPECT_EQ(lath_cuda_product(&product, lent.get()), LATH_DEVICE_FAILED);
  EXPECT_EQ(lent.get()->error, cudaErrorLaunchOutOfResources);
  EXPECT_STREQ(lath_cuda_error_text(lent.get()->error), cudaGetErrorString(cudaErrorLaunchOutOfResources));
  EXPECT_EQ(lath_cuda_product(&product, lent.get()), LATH_OK) << "the error stayed behind";
}
#endif

TEST(Errors, EachHasAText) {
  for (const int error : {0, 1, 2, 700, LATH_CUDA_BLAS_ERROR + 1, LATH_CUDA_BLAS_ERROR + 3, LATH_CUDA_BLAS_ERROR + 7,
                          LATH_CUDA_BLAS_ERROR + 13, LATH_CUDA_BLAS_ERROR + 999}) {
    ASSERT_NE(lath_cuda_error_text(error), nullptr) << error;
    EXPECT_GT(std::string(lath_cuda_error_text(error)).size(), 3u) << error;
  }
}

// ---- a long k in parts -------------------------------------------------------------------------------------------------

void CheckParts(lath_dtype dtype, int64_t m, int64_t n, int64_t k, int64_t parts, uint32_t seed) {
  if (LeftOut(seed)) return;
  emulator_order(seed % 4);
  const Operand a = Filled(dtype, k, m, Layout(), seed), b = Filled(dtype, k, n, Layout(), seed + 1);
  Operand c(dtype, m, n);
  const OnDevice a_device(a), b_device(b), c_device(c);
  const Guarded partial(static_cast<size_t>(parts * m * n) * lath_dtype_size(lath_sum_type(dtype)));
  struct lath_cuda_gemm product = lath_gemm(dtype, m, n, k, c_device.data(), n);
  product.a = a_device.data(), product.s_a = m, product.a_transposed = 1;
  product.b = b_device.data(), product.s_b = n;
  ASSERT_EQ(lath_cuda_tiled_in_parts(&product, parts, partial.data(), nullptr), cudaSuccess);
  c_device.CopyTo(&c);
  emulator_order(0);
  EXPECT_TRUE(partial.Intact());
  EXPECT_TRUE(Exactly(c, Multiply(Transpose(a.Read(), k, m), b.Read(), m, k, n)))
      << dtype << ": " << m << " " << n << " " << k << " in " << parts;
}

TEST(ProductInParts, IsExact) {
  uint32_t seed = 1;
  for (const lath_dtype dtype : kDtypes) {
    for (const int64_t parts : {1, 2, 3, 7}) {
      CheckParts(dtype, 1, 1, 300, parts, seed++);
      CheckParts(dtype, 5, 70, 513, parts, seed++);
      CheckParts(dtype, 64, 64, 256, parts, seed++);
      CheckParts(dtype, 65, 3, 33, parts, seed++);  // fewer slices than parts
    }
  }
}

// One tile of c is one block of threads: of many rows it is two blocks of each multiprocessor, or 256 rows each.
TEST(ProductInParts, TakesAsManyAsThereIsWorkFor) {
  EXPECT_EQ(lath_cuda_tiled_parts(64, 64, 1 << 20, 132), 264);
  EXPECT_EQ(lath_cuda_tiled_parts(64, 64, 16384, 132), 64);
  EXPECT_EQ(lath_cuda_tiled_parts(128, 256, 16384, 132), 33);
  EXPECT_EQ(lath_cuda_tiled_parts(4096, 4096, 16384, 132), 1);
  EXPECT_EQ(lath_cuda_tiled_parts(64, 64, 511, 132), 1);
  EXPECT_EQ(lath_cuda_tiled_parts(0, 64, 16384, 132), 1);
}

}  // namespace
}  // namespace cuda_test
