// SPDX-License-Identifier: Apache-2.0
//
// test_lstm_plan.cc - how a low-rank LSTM is carried out on the device: which association, which launches, which chunks.

#include "lstm_on_device.h"

#include "lowrank/lstm_steps.h"

namespace cuda_test {
namespace {

struct lath_cuda_lstm Plan(const LstmShape &shape, lath_association association = LATH_AUTO, lath_dtype dtype = LATH_F32,
                           int backward = 0, int route = kPlanned) {
  struct lath_lowrank_lstm args = {};
  args.dtype = dtype;
  args.association = association;
  args.steps = shape.steps, args.batch = shape.batch, args.in = shape.in, args.hidden = shape.hidden;
  args.in_rank = shape.in_rank, args.rank = shape.rank;
  args.batch_sizes = shape.packed() ? shape.batch_sizes.data() : nullptr;
  struct lath_cuda_lstm plan = {};
  DeviceOptions options;
  options.route = route;
  Lent lent(options);
  EXPECT_EQ(lath_cuda_lstm_plan(&args, lent.get(), backward, &plan), LATH_OK);
  return plan;
}

const LstmShape kCharacters = LstmShape().Sizes(8, 256).Ranks(0, 51).Sequence(80, 128);
const LstmShape kWide = LstmShape().Sizes(2048, 2048).Ranks(204, 204).Sequence(35, 32);

TEST(LstmPlan, AnAssociationThatIsAskedForIsTaken) {
  for (const LstmShape &shape : {kWide, kWide.Ranks(1900, 1900), kCharacters.Ranks(9, 51)}) {
    EXPECT_TRUE(Plan(shape, LATH_FACTORED).hidden.factored);
    EXPECT_TRUE(Plan(shape, LATH_FACTORED).input.factored);
    EXPECT_FALSE(Plan(shape, LATH_MERGED).hidden.factored);
    EXPECT_FALSE(Plan(shape, LATH_MERGED).input.factored);
    EXPECT_EQ(Plan(shape, LATH_MERGED).resident, 0);
  }
}

TEST(LstmPlan, SharedMemoryOfTheDeviceDecidesWhatFits) {
  const struct lath_device hopper = {132, 227 << 10, 90}, ampere = {108, 163 << 10, 80}, ada = {128, 99 << 10, 89};
  EXPECT_EQ(lath_cuda_lstm_samples_resident(256, 51, 128, &hopper), 1);
  EXPECT_EQ(lath_cuda_lstm_samples_resident(256, 51, 128, &ampere), 0);
  EXPECT_EQ(lath_cuda_lstm_samples_resident(256, 40, 108, &ampere), 1);
  EXPECT_EQ(lath_cuda_lstm_samples_resident(256, 25, 129, &ada), 2);
  EXPECT_EQ(lath_cuda_lstm_samples_resident(256, 40, 1, &ada), 0);
  EXPECT_EQ(lath_cuda_lstm_samples_resident_back(256, 51, 128, &hopper), 1);
  EXPECT_EQ(lath_cuda_lstm_samples_resident_back(256, 51, 128, &ampere), 0);
  EXPECT_EQ(lath_cuda_lstm_samples_resident_back(256, 60, 128, &hopper), 0);
  EXPECT_EQ(lath_cuda_lstm_samples_resident_back(128, 32, 300, &ampere), 2);
}

TEST(LstmPlan, ChunksAreWholeStepsAndCoverAll) {
  for (const bool reverse : {false, true}) {
    for (const int back : {0, 1}) {
      const LstmShape packed = LstmShape().Packed({900, 900, 700, 700, 5, 5, 1});
      struct lath_lowrank_lstm args = {};
      args.steps = packed.steps, args.batch = packed.batch, args.batch_sizes = packed.batch_sizes.data();
      args.reverse = reverse;
      int64_t rows = 0, steps = 0;
      for (struct lath_cuda_lstm_step s = lath_cuda_lstm_first(&args, back); s.rows > 0;) {
        const struct lath_cuda_lstm_chunk chunk = lath_cuda_lstm_chunk(&args, s, 2048, back);
        EXPECT_LE(chunk.rows, 2048);
        EXPECT_LE(chunk.rows, lath_cuda_lstm_chunk_rows(&args, 2048));
        const bool up = reverse == (back == 1);  // from the first rows to the last ones
        EXPECT_EQ(chunk.from.row, up ? rows : packed.rows() - rows - chunk.rows);
        EXPECT_EQ(chunk.from.t, up ? steps : packed.steps - steps - chunk.steps);
        rows += chunk.rows, steps += chunk.steps;
        for (int64_t i = 0; i < chunk.steps; ++i) s = back ? lath_cuda_lstm_before(&args, s) : lath_cuda_lstm_after(&args, s);
      }
      EXPECT_EQ(rows, packed.rows());
      EXPECT_EQ(steps, packed.steps);
    }
  }
}

#if !defined(LATH_TESTS_ON_GPU)

// ---- on the device of the emulator, an H100 -------------------------------------------------------------------------------

TEST(LstmPlan, FactorsAreUsedWhereTheySave) {
  EXPECT_TRUE(Plan(kWide).hidden.factored);
  EXPECT_TRUE(Plan(kWide).input.factored);
  EXPECT_TRUE(Plan(kWide, LATH_AUTO, LATH_F32, 1).hidden.factored);
  EXPECT_FALSE(Plan(kWide.Ranks(1900, 1900).Sequence(500, 32)).hidden.factored);
  EXPECT_FALSE(Plan(kWide.Ranks(1900, 1900).Sequence(500, 32)).input.factored);
  const struct lath_cuda_lstm dense = Plan(kWide.Ranks(0, 204));
  EXPECT_FALSE(dense.input.factored);
  EXPECT_FALSE(lath_cuda_lstm_is_merged(&dense.input));
}

// A step that waits for launches is shorter with one than with two.
TEST(LstmPlan, MergingSavesALaunchOfASmallStep) {
  const LstmShape small = LstmShape().Sizes(8, 100).Ranks(0, 70).Sequence(80, 4);
  EXPECT_FALSE(Plan(small).hidden.factored);
  EXPECT_TRUE(Plan(small.Sequence(1, 4)).hidden.factored);  // and does not pay for one step
}

TEST(LstmPlan, OneLaunchTakesWhatFitsAMultiprocessor) {
  EXPECT_EQ(Plan(kCharacters).resident, 1);
  EXPECT_TRUE(Plan(kCharacters).hidden.factored);
  EXPECT_EQ(Plan(kCharacters.Sequence(80, 1)).resident, 1);
  EXPECT_EQ(Plan(kCharacters.Sequence(80, 200)).resident, 2);  // more samples than multiprocessors
  EXPECT_EQ(Plan(kCharacters).most, LATH_CUDA_LSTM_LONG_CHUNK);
  for (const LstmShape &shape : {kCharacters.Sizes(8, 264), kCharacters.Sizes(8, 252), kCharacters.Ranks(0, 80),
                                 kCharacters.Packed({128, 60, 3}), kCharacters.Sequence(80, 0)}) {
    EXPECT_EQ(Plan(shape).resident, 0) << lath_test::Describe(LATH_F32, shape);
  }
  EXPECT_EQ(Plan(kCharacters, LATH_AUTO, LATH_F64).resident, 0);
  for (const int backward : {0, 1}) EXPECT_EQ(Plan(kCharacters, LATH_AUTO, LATH_F32, backward).resident, 1);
  // The backward has threads for a rank of a quarter of the units.
  const LstmShape thick = LstmShape().Sizes(8, 64).Ranks(0, 17).Sequence(80, 128);
  EXPECT_EQ(Plan(thick, LATH_FACTORED, LATH_F32, 0).resident, 1);
  EXPECT_EQ(Plan(thick, LATH_FACTORED, LATH_F32, 1).resident, 0);
  EXPECT_EQ(Plan(kCharacters, LATH_AUTO, LATH_F32, 0, LATH_LOWRANK_PRODUCTS).resident, 0);
}

// So many samples that the blocks come in waves: steps of all samples at once are shorter.
TEST(LstmPlan, ManySamplesGoStepByStep) {
  EXPECT_EQ(Plan(kCharacters.Sequence(80, 8192)).resident, 0);
  EXPECT_EQ(Plan(kCharacters.Sequence(80, 8192), LATH_AUTO, LATH_F32, 0, LATH_LOWRANK_FUSED).resident, 2);
}

#endif

}  // namespace
}  // namespace cuda_test
