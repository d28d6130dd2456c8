// `pairwise`: all distances between the points of a group, by tiles of packed panels.
//
// Three ways to a distance, all of them exactly 0 between a point and itself:
//   line      one coordinate: |a - b|
//   direct    sum of (a - b)^2, also exactly 0 between duplicates
//   expanded  |a|^2 + |b|^2 - 2 ab, half the work, for many coordinates. It cancels where points are near one another:
//             a tile with such a pair is done again by `direct`.
#pragma once

template <class T>
struct Panel {
  static constexpr int64_t width = 2 * Of<T>::lanes;  // points packed side by side
  // Points of the other side held in registers: as many as there is room for (see vector.h), all of one panel.
  static constexpr int64_t rows = kManyRegisters && width >= 8 ? 8 : 4;
  static_assert(width % rows == 0);
};

constexpr int64_t kExpanded = 24;  // coordinates from which `expanded` is worth its second look
// Pairs nearer than 1/16 of their length are near: beyond, rounding moves a distance by less than 4 eps of the length.
constexpr double kNear = 1.0 / 256;

// sums[rows][width] += squared differences, or products, over `depth` coordinates.
template <class T, bool products>
static void accumulate(const T* rows, const T* columns, int64_t depth, T* sums, int64_t stride) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  constexpr int count = Panel<T>::rows;
  V sum[count][2];
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) {
    sum[r][0] = load(sums + r * stride);
    sum[r][1] = load(sums + r * stride + lanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const V c0 = load(columns + k * width), c1 = load(columns + k * width + lanes);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      const V p = splat(rows[k * width + r]);
      if constexpr (products) {
        sum[r][0] += p * c0;
        sum[r][1] += p * c1;
      } else {
        const V d0 = p - c0, d1 = p - c1;
        sum[r][0] += d0 * d0;
        sum[r][1] += d1 * d1;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) {
    store(sums + r * stride, sum[r][0]);
    store(sums + r * stride + lanes, sum[r][1]);
  }
}

template <class T>
static void add_norms(const T* panels, int64_t points, int64_t depth, T* norms) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  for (int64_t p = 0; p < points; p += width, panels += depth * width) {
    Vec<T> a{}, b{};
    for (int64_t k = 0; k < depth; ++k) {
      const Vec<T> x = load(panels + k * width), y = load(panels + k * width + lanes);
      a += x * x;
      b += y * y;
    }
    store(norms + p, load(norms + p) + a);
    store(norms + p + lanes, load(norms + p + lanes) + b);
  }
}

// The memory of one tile: two packed strips, the norms of their points.
template <class T>
struct Strips {
  T *rows, *columns, *row_norms, *column_norms;
};

// Squared distances, or the products, into the tile's own memory; of a diagonal tile those right of the diagonal.
template <class T, bool products>
static void fill(const Job& job, const Tile& tile, const Strips<T>& strips) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes, step = Panel<T>::rows;
  const bool diagonal = tile.row == tile.column;
  T* sums = static_cast<T*>(tile.out);
  for (int64_t r = 0; r < rounded(tile.rows, step); ++r) {
    for (int64_t c = 0; c < rounded(tile.columns, width); c += lanes) store(sums + r * tile.stride + c, Vec<T>{});
  }
  for (int64_t p = 0; products && p < rounded(kTile, width); p += lanes) {
    store(strips.row_norms + p, Vec<T>{});
    store(strips.column_norms + p, Vec<T>{});
  }
  for (int64_t k = 0; k < job.coordinates; k += kDepth) {
    const int64_t depth = job.coordinates - k < kDepth ? job.coordinates - k : kDepth;
    pack<T>(job, tile.group, tile.row, tile.rows, k, depth, strips.rows);
    if (!diagonal) pack<T>(job, tile.group, tile.column, tile.columns, k, depth, strips.columns);
    const T* across = diagonal ? strips.rows : strips.columns;
    if constexpr (products) {
      add_norms(strips.rows, tile.rows, depth, strips.row_norms);
      add_norms(across, tile.columns, depth, strips.column_norms);
    }
    for (int64_t r = 0; r < tile.rows; r += width) {
      for (int64_t c = diagonal ? r : 0; c < tile.columns; c += width) {
        for (int64_t i = 0; i < width && r + i < tile.rows; i += step) {
          accumulate<T, products>(strips.rows + r * depth + i, across + c * depth, depth,
                                  sums + (r + i) * tile.stride + c, tile.stride);
        }
      }
    }
  }
}

// |a|^2 + |b|^2 - 2 ab in place; false if a pair is too near for it.
template <class T>
static bool expand(const Tile& tile, const Strips<T>& strips) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes, width = Panel<T>::width;
  const bool diagonal = tile.row == tile.column;
  V worst{};  // the largest of (what counts as near) - d^2
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* line = static_cast<T*>(tile.out) + r * tile.stride;
    if (diagonal) line[r] = -strips.row_norms[r];  // comes to 4 |a|^2: not near, and set to 0 below
    for (int64_t c = diagonal ? r / width * width : 0; c < tile.columns; c += lanes) {
      const V both = load(strips.column_norms + c) + strips.row_norms[r];
      const V square = both - 2 * load(line + c);
      worst = larger(worst, both * T(kNear) - square);
      store(line + c, square);
    }
    if (diagonal) line[r] = 0;
  }
  for (int l = 0; l < lanes; ++l) {
    if (worst[l] > 0) return false;
  }
  return true;
}

template <class T>
static void line_distances(const Job& job, const Tile& tile, const Strips<T>& strips) {
  constexpr int64_t lanes = Of<T>::lanes;
  const bool diagonal = tile.row == tile.column;
  points_on_line<T>(job, tile.group, tile.row, tile.rows, strips.rows);
  points_on_line<T>(job, tile.group, tile.column, tile.columns, strips.columns);
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* to = static_cast<T*>(tile.out) + r * tile.stride;
    const Vec<T> p = splat(strips.rows[r]);
    for (int64_t c = diagonal ? r / Panel<T>::width * Panel<T>::width : 0; c < tile.columns; c += lanes) {
      store(to + c, magnitude<T>(p - load(strips.columns + c)));
    }
  }
}

template <class T>
static double distance_tile(const Job& job, const Tile& tile, void* scratch) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  Strips<T> strips{};
  strips.rows = static_cast<T*>(scratch);
  strips.columns = strips.rows + kTile * kDepth;
  strips.row_norms = strips.columns + kTile * kDepth;
  strips.column_norms = strips.row_norms + kTile;
  const bool line = job.coordinates == 1, diagonal = tile.row == tile.column;
  if (line) {
    line_distances(job, tile, strips);
  } else {
    bool done = false;
    if (job.coordinates >= kExpanded) {
      fill<T, true>(job, tile, strips);
      done = expand(tile, strips);
    }
    if (!done) fill<T, false>(job, tile, strips);
  }
  // Cells past the last row or column must add nothing to the sums of `tile_sums`.
  const V pad = splat<T>(job.formula.entropy == Entropy::Distance ? T(0) : Of<T>::huge);
  T* out = static_cast<T*>(tile.out);
  const int64_t padded = rounded(tile.columns, lanes);
  double sum = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t from = diagonal ? r / width * width : 0;
    T* to = out + r * tile.stride;
    V part{};
    for (int64_t c = from; c < tile.columns; c += lanes) {
      V d = line ? load(to + c) : root<T>(load(to + c));
      if (c + lanes <= tile.columns) {
        store(to + c, d);
      } else {
        V cut = pad;
        for (int64_t l = 0; l < lanes; ++l) {
          if (c + l < tile.columns) cut[l] = d[l];
          else d[l] = 0;
        }
        store(to + c, cut);
      }
      part += diagonal && c >= from + width ? d + d : d;
    }
    sum += total<T>(part);
  }
  // Left of the diagonal panels: the mirror image, by strips, so that every line of the cache is written once.
  for (int64_t strip = 0; diagonal && strip < tile.rows; strip += width) {
    const int64_t end = strip + width < tile.rows ? strip + width : tile.rows;
    for (int64_t c = strip + width; c < tile.columns; ++c) {
      for (int64_t r = strip; r < end; ++r) out[c * tile.stride + r] = out[r * tile.stride + c];
    }
  }
  for (int64_t r = tile.rows; r < rounded(tile.rows, 4); ++r) {
    for (int64_t c = 0; c < padded; c += lanes) store(out + r * tile.stride + c, pad);
  }
  return sum;
}

template <class T, Entropy entropy>
static void sums_of_tile(const Tile& tile, T inverse, RowSums* of_rows, RowSums* of_columns) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes;
  constexpr bool two = entropy != Entropy::Similarity;
  const int64_t columns = rounded(tile.columns, lanes);
  alignas(64) T across[2][kTile];
  for (int64_t c = 0; c < columns; c += lanes) {
    store(across[0] + c, V{});
    store(across[1] + c, V{});
  }
  for (int64_t r = 0; r < tile.rows; r += 4) {
    const T* from = static_cast<const T*>(tile.out) + r * tile.stride;
    V first[4] = {}, second[4] = {};
    for (int64_t c = 0; c < columns; c += lanes) {
      V column = load(across[0] + c), column2 = load(across[1] + c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const V x = load(from + i * tile.stride + c) * inverse;
        V a, b{};
        if constexpr (entropy == Entropy::Distance) {
          a = x;
          b = x * logarithm<T>(x);
        } else {
          a = exp_minus<T>(x);
          if constexpr (two) b = a * smaller(x, splat<T>(Of<T>::exp_limit));
        }
        first[i] += a;
        column += a;
        if constexpr (two) {
          second[i] += b;
          column2 += b;
        }
      }
      store(across[0] + c, column);
      if constexpr (two) store(across[1] + c, column2);
    }
    for (int64_t i = 0; i < 4 && r + i < tile.rows; ++i) {
      of_rows[r + i].first += total<T>(first[i]);
      if constexpr (two) of_rows[r + i].second += total<T>(second[i]);
    }
  }
  for (int64_t c = 0; of_columns != nullptr && c < tile.columns; ++c) {
    of_columns[c].first += double(across[0][c]);
    if constexpr (two) of_columns[c].second += double(across[1][c]);
  }
}

template <class T>
static void tile_sums(Entropy entropy, const Tile& tile, double inverse, RowSums* of_rows, RowSums* of_columns) {
  constexpr double limit = Of<T>::inverse_tau_limit;  // either way: past 1 / limit the padding would come near
  const T scale = T(inverse > limit ? limit : inverse < 1 / limit ? 1 / limit : inverse);
  switch (entropy) {
    case Entropy::Similarity: return sums_of_tile<T, Entropy::Similarity>(tile, scale, of_rows, of_columns);
    case Entropy::Softmax: return sums_of_tile<T, Entropy::Softmax>(tile, scale, of_rows, of_columns);
    case Entropy::Distance: return sums_of_tile<T, Entropy::Distance>(tile, scale, of_rows, of_columns);
  }
}
