use super::*;

fn position<T>(dtype: Float, inputs: &[&[T]], outputs: &mut [&mut [T]]) -> Position {
    let pointer = |list: &&[T]| match list.is_empty() {
        true => std::ptr::null_mut(),
        false => list.as_ptr().cast_mut().cast(),
    };
    Position {
        dtype,
        len: inputs.iter().map(|list| list.len()).max().unwrap(),
        inputs: inputs.iter().map(pointer).collect(),
        outputs: outputs.iter_mut().map(|list| list.as_mut_ptr().cast()).collect(),
    }
}

fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.0 - 1.0)
        .collect()
}

#[test]
fn products_are_those_of_the_definition_for_any_number_of_lists() {
    for lists in 1..=11 {
        let vectors: Vec<Vec<f64>> = (0..lists).map(|seed| numbers(5000, seed)).collect();
        let views: Vec<&[f64]> = vectors.iter().map(Vec::as_slice).collect();
        let positions = [position(Float::F64, &views, &mut [])];
        // SAFETY: the vectors live, and nothing writes there.
        let found = total(&unsafe { products(&positions, 2) });
        for (i, one) in vectors.iter().enumerate() {
            for (j, other) in vectors.iter().enumerate() {
                let expected: f64 = one.iter().zip(other).map(|(a, b)| a * b).sum();
                assert!(
                    (found[i * lists + j] - expected).abs() < 1e-9,
                    "{lists}: {i}, {j}"
                );
            }
        }
    }
}

#[test]
fn combinations_may_overwrite_their_inputs() {
    for lists in [2, 3, 6, 7, 13] {
        let vectors: Vec<Vec<f64>> = (0..lists).map(|seed| numbers(4100, seed)).collect();
        let mut own = vectors.clone();
        let inputs: SmallVec<[*mut u8; 4]> = own.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let outputs = SmallVec::from_slice(&[inputs[1], inputs[0]]);
        let factors: Factors = (0..2 * lists).map(|i| i as f64 - 3.0).collect();
        let positions = [Position {
            dtype: Float::F64,
            len: 4100,
            inputs,
            outputs,
        }];
        // SAFETY: the vectors live; the outputs are inputs.
        unsafe { combine(&positions, std::slice::from_ref(&factors), 2) };
        for (row, output) in [1, 0].into_iter().enumerate() {
            for at in [0, 4095, 4096, 4099] {
                let expected: f64 = (0..lists)
                    .map(|j| factors[row * lists + j] * vectors[j][at])
                    .sum();
                assert!((own[output][at] - expected).abs() < 1e-10, "{lists} lists");
            }
        }
    }
}

#[test]
fn missing_tensors_are_zeros() {
    let (a, mut to) = (numbers(5000, 1), vec![0.0; 5000]);
    let positions = [position(Float::F64, &[&a, &[]], &mut [&mut to])];
    // SAFETY: the vectors live, and the output is apart.
    unsafe {
        let found = total(&products(&positions, 1));
        assert!(found[0] > 0.0);
        assert_eq!(found[1..], [0.0; 3]);
        combine(&positions, &[smallvec![2.0, 5.0]], 1);
    }
    assert!(to.iter().zip(&a).all(|(to, a)| *to == 2.0 * a));
}

#[test]
fn kappa_keeps_nan_and_is_small_where_the_forward_gradient_vanishes() {
    assert_eq!(kappa(&[9.0, 1.0, 1.0, 10.0], 2, 0, 1, 1e-10), 1.0 / 9.0);
    assert_eq!(kappa(&[0.0, 0.0, 0.0, 1.0], 2, 0, 1, 1e-10), 0.0);
    assert_eq!(kappa(&[0.0, 0.0, 0.0, 1.0], 2, 0, 1, 0.0), 0.0);
    assert!(kappa(&[0.0, f64::NAN, f64::NAN, f64::NAN], 2, 0, 1, 0.0).is_nan());
    assert!(kappa(&[f64::NAN, 1.0, 1.0, 1.0], 2, 0, 1, 1e-10).is_nan());
}

#[test]
fn targets_move_exactly_where_the_end_is_known() {
    let (from, to) = (numbers(5000, 1), numbers(5000, 2));
    for (tau, end) in [(0.0, &from), (1.0, &to)] {
        let mut own = from.clone();
        let target = own.as_mut_ptr().cast();
        let positions = [Position {
            dtype: Float::F64,
            len: own.len(),
            inputs: SmallVec::from_slice(&[target, to.as_ptr().cast_mut().cast()]),
            outputs: smallvec![target],
        }];
        // SAFETY: the vectors live, and the output is the first input.
        unsafe { move_towards(&positions, tau, 2) };
        assert_eq!(&own, end);
    }
}

#[test]
fn squares_and_differences_are_those_of_the_definition_on_any_number_of_threads() {
    let (gradient, before) = (numbers(9001, 1), numbers(9001, 2));
    let sum = |term: &dyn Fn(usize) -> f64| (0..9001).map(term).sum::<f64>();
    let square = sum(&|i| gradient[i] * gradient[i]);
    let moved = [square, sum(&|i| (gradient[i] - before[i]).powi(2))];
    let mut first = None;
    for threads in [1, 3] {
        let mut copy = before.clone();
        let pointers = [gradient.as_ptr().cast_mut().cast(), copy.as_mut_ptr().cast()];
        let positions = [Position {
            dtype: Float::F64,
            len: 9001,
            inputs: SmallVec::from_slice(&pointers),
            outputs: smallvec![pointers[1]],
        }];
        // SAFETY: the vectors live, and the output is the second input.
        let found = unsafe { follow(&positions, threads) };
        for (found, expected) in found.iter().zip(moved) {
            assert!(
                (found - expected).abs() < 1e-9 * expected,
                "{found}, expected {expected}"
            );
        }
        assert_eq!(copy, gradient);
        assert_eq!(*first.get_or_insert(found), found);
    }
}

/// What steps along directions make of float32 numbers, on an instruction set.
fn directions(isa: Isa, threads: usize) -> (Vec<f64>, Vec<Vec<f32>>) {
    isa.select();
    let mut lists: Vec<Vec<f32>> = (0..4)
        .map(|seed| numbers(9001, seed).iter().map(|&x| x as f32).collect())
        .collect();
    let pointers: Vec<*mut u8> = lists.iter_mut().map(|list| list.as_mut_ptr().cast()).collect();
    let of = |places: &[usize]| {
        // Two tensors, of which the second begins within a vector.
        let part = |start: usize, len: usize| Position {
            dtype: Float::F32,
            len,
            inputs: places
                .iter()
                .map(|&i| pointers[i].wrapping_add(4 * start))
                .collect(),
            outputs: SmallVec::new(),
        };
        [part(0, 4999), part(4999, 4002)]
    };
    // SAFETY: the lists live and are apart.
    let sums = unsafe {
        vec![
            apply(&of(&[0, 1]), Descend::<true> { alpha: 0.7 }, threads),
            apply(
                &of(&[2, 3, 0]),
                Advance {
                    alpha: 0.3,
                    beta: 0.6,
                },
                threads,
            ),
            normalized(&of(&[1, 0, 3]), 0.9, 0.1, threads),
        ]
    };
    (sums, lists)
}

#[test]
fn steps_along_directions_have_the_bits_of_plain_loops_on_any_threads_and_instruction_set() {
    let [mut r, q, mut x, mut p] = std::array::from_fn(|seed| {
        numbers(9001, seed)
            .iter()
            .map(|&x| x as f32)
            .collect::<Vec<f32>>()
    });
    for i in 0..r.len() {
        r[i] -= q[i] * 0.7;
    }
    let square: f64 = r.iter().map(|&r| f64::from(r).powi(2)).sum();
    for i in 0..r.len() {
        (x[i], p[i]) = (x[i] + p[i] * 0.3, r[i] + p[i] * 0.6);
        r[i] = q[i] * 0.9 + r[i] * (1.0 - 0.9_f64) as f32;
    }
    let norm = r.iter().map(|&m| f64::from(m).powi(2)).sum::<f64>().sqrt();
    for isa in Isa::supported() {
        for threads in [1, 3] {
            let (sums, lists) = directions(isa, threads);
            assert!(
                (sums[0] - square).abs() < 1e-9 && (sums[2] - norm).abs() < 1e-9,
                "{sums:?}"
            );
            assert_eq!(sums[1], 0.0);
            let rate = (0.1 / sums[2]) as f32;
            let p: Vec<f32> = p.iter().zip(&r).map(|(p, m)| p - m * rate).collect();
            assert!(lists == [r.clone(), q.clone(), x.clone(), p], "{isa:?}");
            assert_eq!(sums, directions(isa, 2).0);
        }
    }
}

#[test]
fn a_momentum_without_a_norm_moves_nothing() {
    for (g, moved) in [
        (0.0, true),
        (f64::NAN, false),
        (f64::INFINITY, false),
        (1e200, false),
    ] {
        let (mut m, mut x, mut direction) = (vec![0.0; 50], numbers(50, 1), vec![1.0; 50]);
        direction[49] = g;
        if g == 0.0 {
            direction.fill(0.0);
        }
        let inputs = [&mut m, &mut direction, &mut x].map(|list| list.as_mut_ptr().cast());
        let positions = [Position {
            dtype: Float::F64,
            len: 50,
            inputs: SmallVec::from_slice(&inputs),
            outputs: SmallVec::new(),
        }];
        // SAFETY: the lists live and are apart.
        let norm = unsafe { normalized(&positions, 0.5, 0.1, 1) };
        assert_eq!(norm == 0.0, moved);
        assert!(m.iter().all(|&m| m == 0.0) && x == numbers(50, 1));
    }
}
