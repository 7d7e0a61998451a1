//! The best keys of each query: a table for [`attention`](crate::attention).

use einfall_tensor::{Tensor, View};

use crate::{Error, default_device};

/// A table of the `count` keys with the largest products with each query, best first, for [`attention`](crate::attention).
///
/// Query is `(b, h, q, d)`, key `(b, g, n, d)` with h a multiple of g; the table is `(b, h, q, count)`, `i32`, or `i64` where
/// positions need it. Equal products go by position. Where there are fewer keys, and with `causal` fewer that are not after
/// the query (query i sees the keys 0 to i), −1 fills up. No gradient goes through it.
///
/// Exact: all products are computed, `b·h·q·n·d` multiply-adds, a tile at a time, and never stored together. On the
/// processor; [`CpuDevice::best_keys`](crate::CpuDevice::best_keys) is the same on a device of one's own.
///
/// ```
/// use einfall::{View, topk_keys};
///
/// let key = [1.0f32, 0.0, 0.0, 1.0, 2.0, 2.0]; // 3 keys of 2 features, which are the queries too
/// let key = View::from_slice(&key, &[1, 1, 3, 2])?;
/// let table = topk_keys(&key, &key, 2, false)?;
/// assert_eq!(table.as_slice::<i32>()?, [2, 0, 2, 1, 2, 0]);
/// # Ok::<(), einfall::Error>(())
/// ```
///
/// # Errors
/// [`Error::Run`] where shapes or types do not fit; nothing panics, whatever the arguments.
pub fn topk_keys(query: &View<'_>, key: &View<'_>, count: usize, causal: bool) -> Result<Tensor, Error> {
    Ok(default_device()?.best_keys(query, key, count, causal)?)
}
