// `pairwise` between the channels of a filter: tile by tile from the packed points to the sums; distances are not
// stored. For two different panels one order is computed and counted for both; inside a panel, both orders are
// computed.
#pragma once

constexpr double kSqrt2 = 1.41421356237309505;
constexpr int64_t kProducts = 4;  // from this number of coordinates on, products are faster than differences

// The channels of a filter.
template <class T>
struct Points {
  T* panels;
  T* halves;  // |p|^2 / 2
  int64_t count, depth;
};

template <class T>
static Points<T> points_of(const Job& job, int64_t filter, void* scratch) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  Points<T> points{static_cast<T*>(scratch), nullptr, job.points, job.coordinates};
  const int64_t padded = rounded(points.count, width);
  points.halves = points.panels + padded * points.depth;
  if (points.depth == 1) {
    points_on_line<T>(job, filter, 0, points.count, points.panels);
    return points;
  }
  pack<T>(job, filter, 0, points.count, 0, points.depth, points.panels);
  for (int64_t p = 0; p < padded; p += lanes) store(points.halves + p, Vec<T>{});
  add_norms(points.panels, points.count, points.depth, points.halves);
  for (int64_t p = 0; p < padded; p += lanes) store(points.halves + p, load(points.halves + p) / 2);
  return points;
}

// Half the squared distances from Panel::rows points to a panel of points.
template <class T>
FEC_INLINE void half_squares(const Points<T>& points, int64_t row, int64_t column, Vec<T> (*d)[2]) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  constexpr int count = Panel<T>::rows;
  const T* rows = points.panels + row / width * width * points.depth + row % width;
  const T* columns = points.panels + column * points.depth;
  if (points.depth >= kProducts && column != row / width * width) {  // a point is near itself
    const V across[2] = {load(points.halves + column), load(points.halves + column + lanes)};
    const T* halves = points.halves + row;
    V nearest{};  // the largest of (limit of near pairs) - d^2 / 2
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) d[r][0] = -(halves[r] + across[0]), d[r][1] = -(halves[r] + across[1]);
    accumulate<T, Way::Product>(rows, columns, points.depth, d);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      for (int half = 0; half < 2; ++half) {
        nearest = larger(nearest, (halves[r] + across[half]) * T(kNear) + d[r][half]);
        d[r][half] = -d[r][half];
      }
    }
    if (!any_positive<T>(nearest)) return;
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) d[r][0] = d[r][1] = V{};
  accumulate<T, Way::Difference>(rows, columns, points.depth, d);
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) d[r][0] /= 2, d[r][1] /= 2;
}

// Distances from Panel::rows points to a panel: on a line as they are, else in units of sqrt(2). `pad` for points past
// the last one.
template <class T, bool line>
FEC_INLINE void block_of(const Points<T>& points, int64_t row, int64_t column, T pad, Vec<T> (*d)[2]) {
  constexpr int64_t lanes = Of<T>::lanes;
  constexpr int count = Panel<T>::rows;
  if constexpr (line) {
    const T* columns = points.panels + column;
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      d[r][0] = magnitude<T>(points.panels[row + r] - load(columns));
      d[r][1] = magnitude<T>(points.panels[row + r] - load(columns + lanes));
    }
  } else {
    half_squares(points, row, column, d);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) d[r][0] = root<T>(d[r][0]), d[r][1] = root<T>(d[r][1]);
  }
  if (column + Panel<T>::width <= points.count) return;
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) {
    const int64_t left = row + r < points.count ? points.count - column : 0;
    d[r][0] = first_of<T>(left, d[r][0], pad);
    d[r][1] = first_of<T>(left - lanes, d[r][1], pad);
  }
}

// The blocks of a tile that are right of the diagonal panels or on them.
template <class T>
struct Tiling {
  Tiling(const Points<T>& points, int64_t row, int64_t left)
      : row_end(row + kTile < points.count ? row + kTile : points.count),
        column(left),
        column_end(left + kTile < points.count ? left + kTile : points.count) {}

  static int64_t diagonal(int64_t row) { return row / Panel<T>::width * Panel<T>::width; }
  int64_t first_column(int64_t row) const { return diagonal(row) > column ? diagonal(row) : column; }

  int64_t row_end, column, column_end;
};

template <class T, bool line>
static double sum_of_tile(const Points<T>& points, int64_t row, int64_t column) {
  const Tiling<T> tiling(points, row, column);
  Vec<T> inside{}, across{};
  for (int64_t r = row; r < tiling.row_end; r += Panel<T>::rows) {
    for (int64_t c = tiling.first_column(r); c < tiling.column_end; c += Panel<T>::width) {
      Vec<T> d[Panel<T>::rows][2], part{};
      block_of<T, line>(points, r, c, T(0), d);
#pragma GCC unroll 8
      for (int i = 0; i < Panel<T>::rows; ++i) part += d[i][0] + d[i][1];
      (c == tiling.diagonal(r) ? inside : across) += part;
    }
  }
  return total<T>(inside) + 2 * total<T>(across);
}

// The sum of the distances between all channels of a filter, both orders.
template <class T>
static double channel_distances(const Job& job, int64_t filter, void* scratch) {
  const Points<T> points = points_of<T>(job, filter, scratch);
  const bool line = points.depth == 1;
  double sum = 0;
  for (int64_t row = 0; row < points.count; row += kTile) {
    for (int64_t column = row; column < points.count; column += kTile) {
      sum += line ? sum_of_tile<T, true>(points, row, column) : sum_of_tile<T, false>(points, row, column);
    }
  }
  return line ? sum : sum * kSqrt2;
}

// Adds the terms of a tile's distances to the sums of its rows and columns.
template <class T, bool line, Entropy entropy>
static void add_tile(const Points<T>& points, int64_t row, int64_t column, T scale, RowSums* sums) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes;
  constexpr int rows = Panel<T>::rows, group = rows < lanes ? rows : int(lanes);
  constexpr int kinds = entropy == Entropy::Similarity ? 1 : 2;
  const Tiling<T> tiling(points, row, column);
  const T pad = entropy == Entropy::Distance ? T(0) : Of<T>::huge;
  alignas(64) T of_rows[2][kTile] = {}, of_columns[2][kTile] = {};
  for (int64_t r = row; r < tiling.row_end; r += rows) {
    V part[2][rows] = {};
    for (int64_t c = tiling.first_column(r); c < tiling.column_end; c += Panel<T>::width) {
      V d[rows][2];
      block_of<T, line>(points, r, c, pad, d);
      const bool diagonal = c == tiling.diagonal(r);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        V down[2] = {};
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          V term[2];
          pair_terms<T, entropy>(d[i][half] * scale, term[0], term[1]);
          for (int kind = 0; kind < kinds; ++kind) {
            part[kind][i] += term[kind];
            down[kind] += term[kind];
          }
        }
        for (int kind = 0; !diagonal && kind < kinds; ++kind) {
          T* to = of_columns[kind] + c - column + half * lanes;
          store(to, load(to) + down[kind]);
        }
      }
    }
    for (int kind = 0; kind < kinds; ++kind) {  // from the lanes of every row's part to one number
      for (int i = 0; i < rows; i += group) {
        const V sums_of_group = part_sums<T, group>(part[kind] + i);
        for (int l = 0; l < lanes; ++l) of_rows[kind][r - row + i + l % group] += sums_of_group[l];
      }
    }
  }
  const double unit = second_unit(entropy);
  for (int64_t i = 0; i < kTile && row + i < points.count; ++i) {
    sums[row + i].first += double(of_rows[0][i]);
    if constexpr (kinds == 2) sums[row + i].second += double(of_rows[1][i]) * unit;
  }
  for (int64_t i = 0; i < kTile && column + i < points.count; ++i) {
    sums[column + i].first += double(of_columns[0][i]);
    if constexpr (kinds == 2) sums[column + i].second += double(of_columns[1][i]) * unit;
  }
}

template <class T, Entropy entropy>
static double entropy_of(const Points<T>& points, double inverse_tau, RowSums* sums) {
  const bool line = points.depth == 1;
  const T scale = pair_scale<T>(entropy, line ? inverse_tau : inverse_tau * kSqrt2);
  for (int64_t p = 0; p < points.count; ++p) sums[p] = {0, 0};
  for (int64_t row = 0; row < points.count; row += kTile) {
    for (int64_t column = row; column < points.count; column += kTile) {
      if (line) add_tile<T, true, entropy>(points, row, column, scale, sums);
      else add_tile<T, false, entropy>(points, row, column, scale, sums);
    }
  }
  return mean_row_entropy(entropy, sums, points.count);
}

// The entropy of a filter from its channels. `sums` has one entry per channel.
template <class T>
static double channel_entropy(const Job& job, int64_t filter, double inverse_tau, RowSums* sums, void* scratch) {
  const Points<T> points = points_of<T>(job, filter, scratch);
  switch (job.formula.entropy) {
    case Entropy::Similarity: return entropy_of<T, Entropy::Similarity>(points, inverse_tau, sums);
    case Entropy::Softmax: return entropy_of<T, Entropy::Softmax>(points, inverse_tau, sums);
    default: return entropy_of<T, Entropy::Distance>(points, inverse_tau, sums);
  }
}
