// `pairwise` between the filters of a layer: tiles of distances, from packed panels of as many coordinates as fit in
// the L1 cache.
#pragma once

// The memory of a tile that packs for itself: two packed strips, the norms of their points.
template <class T>
struct Strips {
  T *rows, *columns, *row_norms, *column_norms;

  explicit Strips(void* scratch)
      : rows(static_cast<T*>(scratch)),
        columns(rows + kTile * kDepth),
        row_norms(columns + kTile * kDepth),
        column_norms(row_norms + kTile) {}
};

template <class T>
static void clear(const Tile& tile) {
  for (int64_t r = 0; r < rounded(tile.rows, Panel<T>::rows); ++r) {
    T* line = static_cast<T*>(tile.out) + r * tile.stride;
    for (int64_t c = 0; c < rounded(tile.columns, Panel<T>::width); c += Of<T>::lanes) store(line + c, Vec<T>{});
  }
}

// Adds squared differences, or products, of one step of coordinates; of a diagonal tile those right of the diagonal.
template <class T, Way way>
static void add_step(const Tile& tile, const T* rows, const T* columns, int64_t depth) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  constexpr int step = Panel<T>::rows;
  const bool diagonal = tile.row == tile.column;
  for (int64_t r = 0; r < tile.rows; r += width) {
    for (int64_t c = diagonal ? r : 0; c < tile.columns; c += width) {
      for (int64_t i = 0; i < width && r + i < tile.rows; i += step) {
        T* to = static_cast<T*>(tile.out) + (r + i) * tile.stride + c;
        Vec<T> sum[step][2] = {};
        accumulate<T, way>(rows + r * depth + i, columns + c * depth, depth, sum);
#pragma GCC unroll 8
        for (int j = 0; j < step; ++j) {
          store(to + j * tile.stride, load(to + j * tile.stride) + sum[j][0]);
          store(to + j * tile.stride + lanes, load(to + j * tile.stride + lanes) + sum[j][1]);
        }
      }
    }
  }
}

// Squared distances, or the products, from strips that are packed for this tile.
template <class T, Way way>
static void fill(const Job& job, const Tile& tile, const Strips<T>& strips) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  const bool diagonal = tile.row == tile.column;
  clear<T>(tile);
  for (int64_t p = 0; way == Way::Product && p < rounded(kTile, width); p += lanes) {
    store(strips.row_norms + p, Vec<T>{});
    store(strips.column_norms + p, Vec<T>{});
  }
  for (int64_t k = 0; k < job.coordinates; k += kDepth) {
    const int64_t depth = job.coordinates - k < kDepth ? job.coordinates - k : kDepth;
    pack<T>(job, 0, tile.row, tile.rows, k, depth, strips.rows);
    if (!diagonal) pack<T>(job, 0, tile.column, tile.columns, k, depth, strips.columns);
    const T* across = diagonal ? strips.rows : strips.columns;
    if constexpr (way == Way::Product) {
      add_norms(strips.rows, tile.rows, depth, strips.row_norms);
      add_norms(across, tile.columns, depth, strips.column_norms);
    }
    add_step<T, way>(tile, strips.rows, across, depth);
  }
}

// Packs panel by panel over all steps, which reads long runs of every filter.
template <class T>
static void pack_filters(const Job& job, int64_t point, int64_t count, const Packed& to) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  for (int64_t p = 0; p < kSide; p += width) {
    const int64_t n = count - p < width ? count - p : width;
    T* norms = static_cast<T*>(to.norms) + point + p;
    if (to.k == 0) store(norms, Vec<T>{}), store(norms + lanes, Vec<T>{});
    for (int64_t done = 0; done < to.depth; done += kDepth) {
      const int64_t depth = to.depth - done < kDepth ? to.depth - done : kDepth;
      T* panel = static_cast<T*>(to.panels) + to.points * done + (point + p) * depth;
      if (n > 0) {
        pack<T>(job, 0, point + p, n, to.k + done, depth, panel);
        add_norms(panel, n, depth, norms);
      }
    }
  }
}

template <class T>
static void add_products_of(const Tile& tile, const Packed& from) {
  if (from.k == 0) clear<T>(tile);
  for (int64_t done = 0; done < from.depth; done += kDepth) {
    const int64_t depth = from.depth - done < kDepth ? from.depth - done : kDepth;
    const T* panels = static_cast<const T*>(from.panels) + from.points * done;
    add_step<T, Way::Product>(tile, panels + tile.row * depth, panels + tile.column * depth, depth);
  }
}

// |a|^2 + |b|^2 - 2 ab in place; false if a pair is too near for it.
template <class T>
static bool expand(const Tile& tile, const T* row_norms, const T* column_norms) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes, width = Panel<T>::width;
  const bool diagonal = tile.row == tile.column;
  V nearest{};  // the largest of (limit of near pairs) - d^2
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* line = static_cast<T*>(tile.out) + r * tile.stride;
    if (diagonal) line[r] = -row_norms[r];  // gives 4 |a|^2: not near, and set to 0 below
    for (int64_t c = diagonal ? r / width * width : 0; c < tile.columns; c += lanes) {
      const V both = load(column_norms + c) + row_norms[r];
      const V square = both - 2 * load(line + c);
      nearest = larger(nearest, both * T(kNear) - square);
      store(line + c, square);
    }
    if (diagonal) line[r] = 0;
  }
  return !any_positive<T>(nearest);
}

template <class T>
static void line_distances(const Job& job, const Tile& tile, const Strips<T>& strips) {
  constexpr int64_t lanes = Of<T>::lanes;
  const bool diagonal = tile.row == tile.column;
  points_on_line<T>(job, 0, tile.row, tile.rows, strips.rows);
  points_on_line<T>(job, 0, tile.column, tile.columns, strips.columns);
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* to = static_cast<T*>(tile.out) + r * tile.stride;
    const Vec<T> p = splat(strips.rows[r]);
    for (int64_t c = diagonal ? r / Panel<T>::width * Panel<T>::width : 0; c < tile.columns; c += lanes) {
      store(to + c, magnitude<T>(p - load(strips.columns + c)));
    }
  }
}

// Distances from what a tile has, squares or distances on a line; returns their sum, both orders of a diagonal tile.
template <class T>
static double end_tile(const Job& job, const Tile& tile) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  const bool line = job.coordinates == 1, diagonal = tile.row == tile.column;
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
  // Left of the diagonal panels: the mirror image, by strips, so that every cache line is written once.
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

template <class T>
static double distances_of(const Job& job, const Tile& tile, const void* norms, void* scratch) {
  const T* all = static_cast<const T*>(norms);
  if (!expand(tile, all + tile.row, all + tile.column)) fill<T, Way::Difference>(job, tile, Strips<T>(scratch));
  return end_tile<T>(job, tile);
}

template <class T>
static double distance_tile(const Job& job, const Tile& tile, void* scratch) {
  const Strips<T> strips(scratch);
  if (job.coordinates == 1) {
    line_distances(job, tile, strips);
  } else {
    bool done = false;
    if (job.coordinates >= kExpanded) {
      fill<T, Way::Product>(job, tile, strips);
      done = expand(tile, strips.row_norms, strips.column_norms);
    }
    if (!done) fill<T, Way::Difference>(job, tile, strips);
  }
  return end_tile<T>(job, tile);
}

template <class T, Entropy entropy>
static void sums_of_tile(const Tile& tile, T scale, RowSums* of_rows, RowSums* of_columns) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes;
  constexpr bool two = entropy != Entropy::Similarity;
  const int64_t columns = rounded(tile.columns, lanes);
  const double unit = second_unit(entropy);
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
        V a, b{};
        pair_terms<T, entropy>(load(from + i * tile.stride + c) * scale, a, b);
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
      if constexpr (two) of_rows[r + i].second += total<T>(second[i]) * unit;
    }
  }
  for (int64_t c = 0; of_columns != nullptr && c < tile.columns; ++c) {
    of_columns[c].first += double(across[0][c]);
    if constexpr (two) of_columns[c].second += double(across[1][c]) * unit;
  }
}

template <class T>
static void tile_sums(Entropy entropy, const Tile& tile, double inverse_tau, RowSums* of_rows, RowSums* of_columns) {
  const T scale = pair_scale<T>(entropy, inverse_tau);
  switch (entropy) {
    case Entropy::Similarity: return sums_of_tile<T, Entropy::Similarity>(tile, scale, of_rows, of_columns);
    case Entropy::Softmax: return sums_of_tile<T, Entropy::Softmax>(tile, scale, of_rows, of_columns);
    case Entropy::Distance: return sums_of_tile<T, Entropy::Distance>(tile, scale, of_rows, of_columns);
  }
}
