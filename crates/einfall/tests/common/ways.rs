//! Problems that kernels are made for, so long that their vector loops, blocks and groups all turn.

use einfall::DType;
use einfall_testing::case::{ArgumentSpec, Case, Fill};
use einfall_testing::oracle::Bounds;

/// A problem and the kernel that must run it.
pub struct Way {
    pub kernel: &'static str,
    pub equation: &'static str,
    /// Lengths of the axes of each argument; a table says into how many rows it points.
    pub arguments: &'static [(&'static [usize], Option<usize>)],
    pub sizes: &'static [(&'static str, usize)],
}

/// The problems.
pub const WAYS: &[Way] = &[
    Way {
        kernel: "tiny",
        equation: "aijc,akjc->cik",
        arguments: &[(&[2, 3, 5, 7], None), (&[2, 4, 5, 7], None)],
        sizes: &[],
    },
    Way { kernel: "tiny", equation: "iij->j", arguments: &[(&[6, 6, 11], None)], sizes: &[] },
    Way { kernel: "tiny", equation: "i,j->ji", arguments: &[(&[5], None), (&[13], None)], sizes: &[] },
    Way { kernel: "tiny", equation: "ab,ab->", arguments: &[(&[31, 9], None), (&[31, 9], None)], sizes: &[] },
    Way {
        kernel: "gemm",
        equation: "dabfe,fc->edcba",
        arguments: &[(&[5, 19, 3, 21, 37], None), (&[21, 7], None)],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "aebd,ce->dcba",
        arguments: &[(&[70, 45, 3, 53], None), (&[23, 45], None)],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "dac,bcd->ba",
        arguments: &[(&[33, 37, 41], None), (&[23, 41, 33], None)],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "aged,cbfg->fedcba",
        arguments: &[(&[12, 11, 5, 17], None), (&[3, 16, 5, 11], None)],
        sizes: &[],
    },
    Way { kernel: "gemm", equation: "ki,kj->ij", arguments: &[(&[3500, 19], None), (&[3500, 33], None)], sizes: &[] },
    Way {
        kernel: "gemm",
        equation: "zabk,ckz->zcba",
        arguments: &[(&[3, 40, 9, 29], None), (&[17, 29, 3], None)],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "bqd,b[bqk]d->bqk",
        arguments: &[(&[2, 19, 37], None), (&[2, 53, 37], None), (&[2, 19, 67], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[qk]d->qk",
        arguments: &[(&[3, 20], None), (&[900, 20], None), (&[3, 1100], Some(900))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[qk]d->qk",
        arguments: &[(&[40, 8], None), (&[70, 8], None), (&[40, 130], Some(70))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "[e]d,[e]d->e",
        arguments: &[(&[31, 33], None), (&[600], Some(31)), (&[29, 33], None), (&[600], Some(29))],
        sizes: &[],
    },
    Way {
        kernel: "dots",
        equation: "qd,[q+w-3]d->qw",
        arguments: &[(&[41, 17], None), (&[41, 17], None)],
        sizes: &[("w", 7)],
    },
    Way {
        kernel: "axpys",
        equation: "bqk,b[bqk]d->bqd",
        arguments: &[(&[2, 19, 67], None), (&[2, 53, 37], None), (&[2, 19, 67], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "axpys",
        equation: "qk,[qk]d->qd",
        arguments: &[(&[3, 1100], None), (&[900, 600], None), (&[3, 1100], Some(900))],
        sizes: &[],
    },
    Way { kernel: "axpys", equation: "[qk]d->qd", arguments: &[(&[50, 19], None), (&[7, 300], Some(50))], sizes: &[] },
    Way {
        kernel: "axpys",
        equation: "qjk,[qjk]d->qd",
        arguments: &[(&[5, 3, 40], None), (&[50, 24], None), (&[5, 3, 40], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "axpys",
        equation: "qw,[2q+w-5]d->qd",
        arguments: &[(&[41, 9], None), (&[80, 17], None)],
        sizes: &[],
    },
    Way {
        kernel: "copies",
        equation: "[qk]d->qkd",
        arguments: &[(&[50, 37], None), (&[9, 300], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "copies",
        equation: "q,[q]d->qd",
        arguments: &[(&[600], None), (&[50, 20], None), (&[600], Some(50))],
        sizes: &[],
    },
    Way {
        kernel: "dense",
        equation: "bqd,b[bqk]d->bqk",
        arguments: &[(&[2, 70, 21], None), (&[2, 53, 21], None), (&[2, 70, 131], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "dense",
        equation: "bqd,b[q+w-40]d->bqw",
        arguments: &[(&[2, 70, 21], None), (&[2, 75, 21], None)],
        sizes: &[("w", 90)],
    },
    Way {
        kernel: "dense",
        equation: "qd,[3q-2w+9]d->qw",
        arguments: &[(&[70, 21], None), (&[75, 21], None)],
        sizes: &[("w", 31)],
    },
    Way {
        kernel: "spread",
        equation: "bqk,b[bqk]d->bqd",
        arguments: &[(&[2, 70, 131], None), (&[2, 53, 21], None), (&[2, 70, 131], Some(53))],
        sizes: &[],
    },
    Way {
        kernel: "spread",
        equation: "bqw,b[q+w-40]d->bqd",
        arguments: &[(&[2, 70, 90], None), (&[2, 75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "spread",
        equation: "qw,[3q-2w+9]d->qd",
        arguments: &[(&[70, 31], None), (&[75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "sorted",
        equation: "td,[t]df->tf",
        arguments: &[(&[700, 19], None), (&[3, 19, 37], None), (&[700], Some(3))],
        sizes: &[],
    },
    Way {
        kernel: "sorted",
        equation: "bstd,b[st]fd->bstf",
        arguments: &[(&[2, 6, 100, 7], None), (&[2, 5, 37, 7], None), (&[6, 100], Some(5))],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "bqd,bkd->bqk",
        arguments: &[(&[2, 70, 21], None), (&[2, 75, 21], None)],
        sizes: &[],
    },
    Way {
        kernel: "gemm",
        equation: "id,[j]d->ij",
        arguments: &[(&[70, 21], None), (&[75, 21], None), (&[90], Some(75))],
        sizes: &[],
    },
    Way {
        kernel: "inverted",
        equation: "e,[e]d->[e]d",
        arguments: &[(&[900], None), (&[50, 21], None), (&[900], Some(50)), (&[900], Some(40))],
        sizes: &[("[e]", 40)],
    },
    // Rows that very many entries hit, and long ones.
    Way {
        kernel: "inverted",
        equation: "ed->[e]d",
        arguments: &[(&[2600, 64], None), (&[2600], Some(3))],
        sizes: &[("[e]", 3)],
    },
    Way {
        kernel: "inverted",
        equation: "e,[e]d->[e]d",
        arguments: &[(&[1100], None), (&[50, 257], None), (&[1100], Some(50)), (&[1100], Some(2))],
        sizes: &[("[e]", 2)],
    },
    // Rows that none hits; batches; loops that share the table.
    Way {
        kernel: "inverted",
        equation: "e,[e]d->[e]d",
        arguments: &[(&[1500], None), (&[50, 20], None), (&[1500], Some(50)), (&[1500], Some(2000))],
        sizes: &[("[e]", 2000)],
    },
    Way {
        kernel: "inverted",
        equation: "bqk,bqd->b[bqk]d",
        arguments: &[(&[2, 19, 67], None), (&[2, 19, 37], None), (&[2, 19, 67], Some(53))],
        sizes: &[("[bqk]", 53)],
    },
    Way {
        kernel: "inverted",
        equation: "eh,[e]hd->[e]hd",
        arguments: &[(&[1100, 3], None), (&[50, 3, 20], None), (&[1100], Some(50)), (&[1100], Some(40))],
        sizes: &[("[e]", 40)],
    },
    Way { kernel: "nest", equation: "e->[e]", arguments: &[(&[5000], None), (&[5000], Some(7))], sizes: &[("[e]", 7)] },
    Way {
        kernel: "nest",
        equation: "be,be->b[e]",
        arguments: &[(&[3, 900], None), (&[3, 900], None), (&[900], Some(400))],
        sizes: &[("[e]", 400)],
    },
    // Long sums of one input: along it, across it, both.
    Way { kernel: "nest", equation: "ij->", arguments: &[(&[300, 701], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ij->i", arguments: &[(&[7, 9000], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ij->i", arguments: &[(&[301, 24], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ij->j", arguments: &[(&[1500, 37], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ijk->j", arguments: &[(&[37, 5, 480], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ijkl->lj", arguments: &[(&[33, 7, 31, 5], None)], sizes: &[] },
    // Nothing is summed: long rows, short ones, rows that run across those of an input, one row.
    Way { kernel: "nest", equation: "ij,ij->ij", arguments: &[(&[3, 9001], None), (&[3, 9001], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ij,i->ij", arguments: &[(&[701, 37], None), (&[701], None)], sizes: &[] },
    Way { kernel: "nest", equation: "i,j->ij", arguments: &[(&[201], None), (&[203], None)], sizes: &[] },
    Way { kernel: "nest", equation: "ij,ji->ij", arguments: &[(&[301, 131], None), (&[131, 301], None)], sizes: &[] },
    Way {
        kernel: "nest",
        equation: "ijk,kji->jik",
        arguments: &[(&[7, 67, 129], None), (&[129, 67, 7], None)],
        sizes: &[],
    },
    // Many small products, and many short sums.
    Way {
        kernel: "nest",
        equation: "bij,bjk->bik",
        arguments: &[(&[701, 3, 5], None), (&[701, 5, 4], None)],
        sizes: &[],
    },
    Way {
        kernel: "nest",
        equation: "bij,bik->bjk",
        arguments: &[(&[301, 3, 5], None), (&[301, 3, 16], None)],
        sizes: &[],
    },
    Way {
        kernel: "nest",
        equation: "bijc,bjc->bi",
        arguments: &[(&[101, 13, 5, 7], None), (&[101, 5, 7], None)],
        sizes: &[],
    },
    Way { kernel: "nest", equation: "bijc->b", arguments: &[(&[201, 3, 5, 130], None)], sizes: &[] },
    // Rows divided among threads.
    Way { kernel: "axpys", equation: "i,ij->j", arguments: &[(&[3001], None), (&[3001, 301], None)], sizes: &[] },
];

pub fn case_of(way: &Way, dtype: DType, table: DType, fill: &Fill, bounds: Bounds, seed: u64) -> Case {
    let argument = |&(shape, rows): &(&[usize], Option<usize>)| ArgumentSpec {
        dtype: if rows.is_some() { table } else { dtype },
        shape: shape.to_vec(),
        strides: None,
        offset: 0,
        misaligned: 0,
        fill: match rows {
            Some(rows) if bounds == Bounds::Skip => Fill::Outside(rows),
            Some(rows) => Fill::Random(rows),
            None => fill.clone(),
        },
        storage_len: None,
    };
    Case {
        equation: way.equation.into(),
        arguments: way.arguments.iter().map(argument).collect(),
        sizes: way.sizes.iter().map(|&(name, len)| (name.into(), len)).collect(),
        bounds,
        out: None,
        seed,
        source: String::new(),
    }
}
