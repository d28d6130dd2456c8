// `pairwise`: all distances between points, by tiles of packed panels; direct differences, so that a point is at
// exactly 0 from itself and from its duplicates.
#pragma once

template <class T>
struct Panel {
  static constexpr int64_t width = 2 * Of<T>::lanes;  // points packed side by side
  static constexpr int64_t rows = 4;  // points of the other side held in registers
};

// sums[rows][width] += squared differences over `depth` coordinates.
template <class T>
FEC_INLINE void squares(const T* rows, const T* columns, int64_t depth, T* sums, int64_t stride) {
  using V = Vec<T>;
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  V sum[Panel<T>::rows][2];
  for (int r = 0; r < Panel<T>::rows; ++r) {
    sum[r][0] = load(sums + r * stride);
    sum[r][1] = load(sums + r * stride + lanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const V c0 = load(columns + k * width), c1 = load(columns + k * width + lanes);
    for (int r = 0; r < Panel<T>::rows; ++r) {
      const V p = splat(rows[k * width + r]);
      const V d0 = p - c0, d1 = p - c1;
      sum[r][0] += d0 * d0;
      sum[r][1] += d1 * d1;
    }
  }
  for (int r = 0; r < Panel<T>::rows; ++r) {
    store(sums + r * stride, sum[r][0]);
    store(sums + r * stride + lanes, sum[r][1]);
  }
}

template <class T, class Read>
static void pack(const Job& job, int64_t group, int64_t point, int64_t count, int64_t k, int64_t depth, T* to) {
  constexpr int64_t width = Panel<T>::width;
  for (int64_t p = 0; p < count; p += width, to += depth * width) {
    const int64_t n = count - p < width ? count - p : width;
    if (n < width) __builtin_memset(to, 0, size_t(depth * width) * sizeof(T));
    points_of<T, Read>(job, group, point + p, n, k, depth, to, width);
  }
}

template <class T>
static double distance_tile(const Job& job, const Tile& tile, void* scratch) {
  constexpr int64_t width = Panel<T>::width, lanes = Of<T>::lanes;
  T* rows = static_cast<T*>(scratch);
  T* columns = rows + kTile * kDepth;
  T* sums = columns + kTile * kDepth;
  const bool diagonal = tile.row == tile.column;  // one strip packed, one triangle computed
  for (int64_t r = 0; r < (tile.rows + Panel<T>::rows - 1) / Panel<T>::rows * Panel<T>::rows; ++r) {
    for (int64_t c = 0; c < (tile.columns + width - 1) / width * width; c += lanes) {
      store(sums + r * kTile + c, Vec<T>{});
    }
  }
  for (int64_t k = 0; k < job.coordinates; k += kDepth) {
    const int64_t depth = job.coordinates - k < kDepth ? job.coordinates - k : kDepth;
    Readers<T>::visit(job.layer->dtype, [&](auto reader) {
      pack<T, decltype(reader)>(job, tile.group, tile.row, tile.rows, k, depth, rows);
      if (!diagonal) pack<T, decltype(reader)>(job, tile.group, tile.column, tile.columns, k, depth, columns);
    });
    const T* across = diagonal ? rows : columns;
    for (int64_t r = 0; r < tile.rows; r += width) {
      for (int64_t c = diagonal ? r : 0; c < tile.columns; c += width) {
        for (int64_t i = 0; i < width && r + i < tile.rows; i += Panel<T>::rows) {
          squares(rows + r * depth + i, across + c * depth, depth, sums + (r + i) * kTile + c, kTile);
        }
      }
    }
  }
  T* out = static_cast<T*>(tile.out);
  T* mirror = static_cast<T*>(tile.mirror);
  double total_sum = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t from = diagonal ? r / width * width : 0;
    T* line = sums + r * kTile;
    Vec<T> part{};
    for (int64_t c = from; c < tile.columns; c += lanes) {
      Vec<T> d = root<T>(load(line + c));
      store(line + c, d);
      if (c + lanes <= tile.columns) {
        store(out + r * tile.stride + c, d);
      } else {
        for (int64_t l = 0; l < lanes; ++l) {
          if (c + l < tile.columns) out[r * tile.stride + c + l] = d[l];
          else d[l] = 0;
        }
      }
      part += (diagonal && c >= from + width) ? d + d : d;
    }
    total_sum += total<T>(part);
  }
  // Transposed by strips, so that every line of the mirror is written once.
  for (int64_t strip = 0; mirror != nullptr && strip < tile.rows; strip += width) {
    const int64_t end = strip + width < tile.rows ? strip + width : tile.rows;
    for (int64_t c = diagonal ? strip + width : 0; c < tile.columns; ++c) {
      for (int64_t r = strip; r < end; ++r) mirror[c * tile.mirror_stride + r] = sums[r * kTile + c];
    }
  }
  return total_sum;
}

template <class T, Entropy entropy>
static void row_sums(const T* distances, int64_t count, T inverse, RowSums* sums) {
  using V = Vec<T>;
  constexpr int64_t lanes = Of<T>::lanes, chunk = 16 * lanes;  // summed in T, then in double
  for (int64_t start = 0; start < count; start += chunk) {
    const int64_t end = start + chunk < count ? start + chunk : count;
    V first{}, second{};
    for (int64_t i = start; i < end; i += lanes) {
      V x;
      if (i + lanes <= end) {
        x = load(distances + i) * inverse;
      } else {  // lanes past the end add nothing: e^-limit is lost beside the 1 of the point itself
        x = splat<T>(entropy == Entropy::Distance ? T(0) : Of<T>::exp_limit);
        for (int64_t l = 0; i + l < end; ++l) x[l] = distances[i + l] * inverse;
      }
      if constexpr (entropy == Entropy::Distance) {
        first += x;
        second += x * logarithm<T>(x);
      } else {
        const V z = exp_minus<T>(x);
        first += z;
        if constexpr (entropy == Entropy::Softmax) second += z * smaller(x, splat<T>(Of<T>::exp_limit));
      }
    }
    sums->first += total<T>(first);
    sums->second += total<T>(second);
  }
}

template <class T>
static void distance_row(Entropy entropy, const void* distances, int64_t count, double inverse, RowSums* sums) {
  const T limit = Of<T>::inverse_tau_limit, scale = inverse < double(limit) ? T(inverse) : limit;
  const T* from = static_cast<const T*>(distances);
  switch (entropy) {
    case Entropy::Similarity: return row_sums<T, Entropy::Similarity>(from, count, scale, sums);
    case Entropy::Softmax: return row_sums<T, Entropy::Softmax>(from, count, scale, sums);
    case Entropy::Distance: return row_sums<T, Entropy::Distance>(from, count, scale, sums);
  }
}
