//! The functions through which the loops are entered, stamped once for every instruction set, so that each is compiled
//! with its instructions enabled.
//!
//! The choice of the number of chunks is made here, outside all loops. The lanes are passed as a value, which has no
//! size, so that callers need not spell types.

/// Entry functions with the attributes given, a `target_feature` as a rule.
macro_rules! entries {
    ($(#[$attribute:meta])*) => {
        mod entry_functions {
            #![allow(unsafe_op_in_unsafe_fn)] // the invariants are those of the public functions of `rows`

            use $crate::kernels::rows::lanes::{HALF, Lanes, PART, WHOLE, part};
            use $crate::kernels::rows::{
                AxpyList, Axpys, DotList, Dots, MultiAxpys, MultiDots, PairedDots, RowWeight, Scatter, axpys, dots,
                scatter,
            };

            pub(in $crate::kernels::rows) unsafe fn dots<L: Lanes>(
                _: L,
                call: &Dots<L::Element>,
            ) {
                let &Dots { d, lists, once } = call;
                if d == 0 {
                    for list in lists {
                        axpys::clear::<L::Element>(list.out, list.count);
                    }
                } else if d > L::DOT_CHUNKS * L::STEP {
                    long_dots::<L>(d, lists);
                } else {
                    match part::<L>(d) {
                        WHOLE => choose_dots::<L, WHOLE>(d, lists, once),
                        HALF if L::HALVES => choose_dots::<L, HALF>(d, lists, once),
                        _ => choose_dots::<L, PART>(d, lists, once),
                    }
                }
            }

            unsafe fn choose_dots<L: Lanes, const LAST: u8>(
                d: usize,
                lists: &[DotList<L::Element>],
                once: bool,
            ) {
                match d.div_ceil(L::STEP) {
                    1 => dots_of_chunks::<L, 1, LAST>(d, lists, once),
                    2 => dots_of_chunks::<L, 2, LAST>(d, lists, once),
                    3 => dots_of_chunks::<L, 3, LAST>(d, lists, once),
                    4 => dots_of_chunks::<L, 4, LAST>(d, lists, once),
                    c if L::DOT_CHUNKS > 4 => match c {
                        5 => dots_of_chunks::<L, 5, LAST>(d, lists, once),
                        6 => dots_of_chunks::<L, 6, LAST>(d, lists, once),
                        7 => dots_of_chunks::<L, 7, LAST>(d, lists, once),
                        _ => dots_of_chunks::<L, 8, LAST>(d, lists, once),
                    },
                    c => unreachable!("{c} chunks do not fit in registers"),
                }
            }

            $(#[$attribute])*
            unsafe fn dots_of_chunks<L: Lanes, const C: usize, const LAST: u8>(
                d: usize,
                lists: &[DotList<L::Element>],
                once: bool,
            ) {
                dots::listed::<L, C, LAST>(d, lists, once);
            }

            $(#[$attribute])*
            unsafe fn long_dots<L: Lanes>(d: usize, lists: &[DotList<L::Element>]) {
                dots::long::<L>(d, lists);
            }

            $(#[$attribute])*
            pub(in $crate::kernels::rows) unsafe fn paired_dots<L: Lanes>(_: L, call: &PairedDots<L::Element>) {
                if call.d == 0 {
                    return axpys::clear::<L::Element>(call.out, call.count);
                }
                dots::paired::<L>(call);
            }

            $(#[$attribute])*
            pub(in $crate::kernels::rows) unsafe fn multi_dots<L: Lanes>(_: L, call: &MultiDots<L::Element>) {
                match L::BLOCK {
                    16 => dots::multi::<L, 16, 4>(call),
                    8 => dots::multi::<L, 8, 2>(call),
                    _ => dots::multi::<L, 4, 1>(call),
                }
            }

            pub(in $crate::kernels::rows) unsafe fn axpys<L: Lanes, W: RowWeight<L::Element>>(
                _: L,
                call: &Axpys<L::Element, W>,
            ) {
                let &Axpys { d, lists, accumulate } = call;
                let mut column = 0;
                while column < d {
                    let c = L::AXPY_CHUNKS.min((d - column).div_ceil(L::STEP));
                    let last = if column + c * L::STEP <= d { WHOLE } else { part::<L>(d) };
                    match last {
                        WHOLE => choose_axpys::<L, W, WHOLE>(c, column, d, lists, accumulate),
                        HALF if L::HALVES => choose_axpys::<L, W, HALF>(c, column, d, lists, accumulate),
                        _ => choose_axpys::<L, W, PART>(c, column, d, lists, accumulate),
                    }
                    column += c * L::STEP;
                }
            }

            unsafe fn choose_axpys<L: Lanes, W: RowWeight<L::Element>, const LAST: u8>(
                c: usize,
                column: usize,
                d: usize,
                lists: &[AxpyList<L::Element, W>],
                accumulate: bool,
            ) {
                match c {
                    1 => axpys_of_chunks::<L, W, 1, LAST>(column, d, lists, accumulate),
                    2 => axpys_of_chunks::<L, W, 2, LAST>(column, d, lists, accumulate),
                    c if L::AXPY_CHUNKS > 2 => match c {
                        3 => axpys_of_chunks::<L, W, 3, LAST>(column, d, lists, accumulate),
                        4 => axpys_of_chunks::<L, W, 4, LAST>(column, d, lists, accumulate),
                        c if L::AXPY_CHUNKS > 4 => match c {
                            5 => axpys_of_chunks::<L, W, 5, LAST>(column, d, lists, accumulate),
                            6 => axpys_of_chunks::<L, W, 6, LAST>(column, d, lists, accumulate),
                            7 => axpys_of_chunks::<L, W, 7, LAST>(column, d, lists, accumulate),
                            _ => axpys_of_chunks::<L, W, 8, LAST>(column, d, lists, accumulate),
                        },
                        c => unreachable!("{c} chunks do not fit in registers"),
                    },
                    c => unreachable!("{c} chunks do not fit in registers"),
                }
            }

            $(#[$attribute])*
            unsafe fn axpys_of_chunks<L: Lanes, W: RowWeight<L::Element>, const C: usize, const LAST: u8>(
                column: usize,
                d: usize,
                lists: &[AxpyList<L::Element, W>],
                accumulate: bool,
            ) {
                if 4 * C <= L::SIDE_BY_SIDE {
                    axpys::columns::<L, W, 4, C, LAST>(column, d, lists, accumulate);
                } else if 2 * C <= L::SIDE_BY_SIDE {
                    axpys::columns::<L, W, 2, C, LAST>(column, d, lists, accumulate);
                } else {
                    axpys::columns::<L, W, 1, C, LAST>(column, d, lists, accumulate);
                }
            }

            $(#[$attribute])*
            pub(in $crate::kernels::rows) unsafe fn multi_axpys<L: Lanes, W: RowWeight<L::Element>>(
                _: L,
                call: &MultiAxpys<L::Element, W>,
            ) {
                let mut column = 0;
                while column < call.d {
                    let c = (L::AXPY_CHUNKS / 2).min((call.d - column).div_ceil(L::STEP));
                    match (c, column + c * L::STEP > call.d) {
                        (1, false) => axpys::multi::<L, W, 1, WHOLE>(call, column),
                        (1, true) => axpys::multi::<L, W, 1, PART>(call, column),
                        (2, false) => axpys::multi::<L, W, 2, WHOLE>(call, column),
                        (2, true) => axpys::multi::<L, W, 2, PART>(call, column),
                        (3, false) => axpys::multi::<L, W, 3, WHOLE>(call, column),
                        (3, true) => axpys::multi::<L, W, 3, PART>(call, column),
                        (_, false) => axpys::multi::<L, W, 4, WHOLE>(call, column),
                        (_, true) => axpys::multi::<L, W, 4, PART>(call, column),
                    }
                    column += c * L::STEP;
                }
            }

            $(#[$attribute])*
            pub(in $crate::kernels::rows) unsafe fn scatter<L: Lanes>(_: L, call: &Scatter<L::Element>) {
                let mut column = 0;
                while column < call.d {
                    let c = L::AXPY_CHUNKS.min(4).min((call.d - column).div_ceil(L::STEP));
                    match (c, column + c * L::STEP > call.d) {
                        (1, false) => scatter::columns::<L, 1, WHOLE>(column, call.d, call.list),
                        (1, true) => scatter::columns::<L, 1, PART>(column, call.d, call.list),
                        (2, false) => scatter::columns::<L, 2, WHOLE>(column, call.d, call.list),
                        (2, true) => scatter::columns::<L, 2, PART>(column, call.d, call.list),
                        (3, false) => scatter::columns::<L, 3, WHOLE>(column, call.d, call.list),
                        (3, true) => scatter::columns::<L, 3, PART>(column, call.d, call.list),
                        (_, false) => scatter::columns::<L, 4, WHOLE>(column, call.d, call.list),
                        (_, true) => scatter::columns::<L, 4, PART>(column, call.d, call.list),
                    }
                    column += c * L::STEP;
                }
            }
        }
        pub(super) use entry_functions::*;
    };
}

pub(super) use entries;
