use super::*;

/// Short runs and long ones, each with a last ghost that is longer.
const SHAPES: [[usize; 3]; 4] = [[9, 3, 1], [41, 40, 1], [13, 5, 7], [5, 2, 150]];
const SIZE: usize = 2;
const EPS: f64 = 1e-5;

fn shape([rows, channels, run]: [usize; 3]) -> Shape {
    Shape {
        dtype: Float::F64,
        rows,
        channels,
        run,
        size: SIZE,
    }
}

fn numbers(len: usize, seed: usize) -> Vec<f64> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.0;
    (0..len).map(number).collect()
}

/// All weights, and all biases after them.
fn affine_of(numbers: &[f64]) -> Affine<'_> {
    let (weight, bias) = numbers.split_at(numbers.len() / 2);
    Affine { weight, bias }
}

/// The elements of a channel of a ghost, by their numbers.
fn elements(shape: &Shape, ghost: usize, channel: usize) -> Vec<usize> {
    let runs = shape.rows_of(ghost).map(|row| row * shape.channels + channel);
    runs.flat_map(|run| run * shape.run..(run + 1) * shape.run)
        .collect()
}

/// What a pass writes: elements, and numbers of channels of ghosts.
type Written = (Vec<f64>, Vec<f64>);

fn normalized(shape: &Shape, x: &[f64], affine: Affine, threads: usize) -> Written {
    let mut y = vec![0.0; x.len()];
    let mut found = vec![0.0; 3 * shape.ghosts() * shape.channels];
    let [from, to] = [x.as_ptr().cast::<u8>(), y.as_mut_ptr().cast()];
    // SAFETY: the vectors are as long as the shape says, and apart.
    unsafe { forward(shape, from, to.cast_mut(), affine, EPS, &mut found, threads) };
    (y, found)
}

fn differentiated(
    shape: &Shape,
    from: [&[f64]; 2],
    weight: &[f64],
    known: &[f64],
    threads: usize,
) -> Written {
    let mut dx = vec![0.0; from[0].len()];
    let mut found = vec![0.0; 2 * shape.ghosts() * shape.channels];
    let from = from.map(|each| each.as_ptr().cast());
    let to = dx.as_mut_ptr().cast();
    // SAFETY: as above.
    unsafe { backward(shape, from, to, weight, known, &mut found, threads) };
    (dx, found)
}

#[test]
fn ghosts_are_normalized_by_their_own_statistics_far_from_zero_and_on_any_number_of_threads() {
    for shape in SHAPES.map(shape) {
        let x: Vec<f64> = numbers(shape.rows * shape.channels * shape.run, 1);
        let x: Vec<f64> = x.iter().map(|x| x + 1e4).collect();
        let numbers = numbers(2 * shape.channels, 2);
        let affine = affine_of(&numbers);
        let found = normalized(&shape, &x, affine, 1);
        assert_eq!(found, normalized(&shape, &x, affine, 3));
        for ghost in 0..shape.ghosts() {
            for channel in 0..shape.channels {
                let own = elements(&shape, ghost, channel);
                let mean = own.iter().map(|&i| x[i]).sum::<f64>() / own.len() as f64;
                let squares = own.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>();
                let scale = 1.0 / (squares / own.len() as f64 + EPS).sqrt();
                let place = ghost * shape.channels + channel;
                let expected = [mean, scale, squares / (own.len() - 1) as f64];
                for (found, expected) in found.1[place..]
                    .iter()
                    .step_by(shape.ghosts() * shape.channels)
                    .zip(expected)
                {
                    assert!((found - expected).abs() <= 1e-9 * expected.abs());
                }
                for i in own {
                    let expected = (x[i] - mean) * scale * affine.weight[channel] + affine.bias[channel];
                    assert!((found.0[i] - expected).abs() < 1e-7, "{shape:?}: {i}");
                }
            }
        }
    }
}

#[test]
fn derivatives_are_those_of_differences() {
    const STEP: f64 = 1e-6;
    for shape in SHAPES.map(shape) {
        let len = shape.rows * shape.channels * shape.run;
        let (x, dy, affine) = (numbers(len, 1), numbers(len, 4), numbers(2 * shape.channels, 2));
        let loss = |x: &[f64], affine: &[f64]| -> f64 {
            let (y, _) = normalized(&shape, x, affine_of(affine), 1);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let (_, known) = normalized(&shape, &x, affine_of(&affine), 1);
        let found = differentiated(&shape, [&x, &dy], affine_of(&affine).weight, &known, 1);
        assert_eq!(
            found,
            differentiated(&shape, [&x, &dy], affine_of(&affine).weight, &known, 3)
        );
        let moved = |from: &[f64], at: usize, by: f64| {
            let mut moved = from.to_vec();
            moved[at] += by;
            moved
        };
        let near = |found: f64, [up, down]: [f64; 2]| {
            let expected = (up - down) / (2.0 * STEP);
            assert!(
                (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                "{shape:?}"
            );
        };
        for at in [0, len / 2, len - 1] {
            near(
                found.0[at],
                [STEP, -STEP].map(|by| loss(&moved(&x, at, by), &affine)),
            );
        }
        // Derivatives of all ghosts, by a weight and by a bias.
        for at in [0, 2 * shape.channels - 1] {
            let (kind, channel) = (at / shape.channels, at % shape.channels);
            let own = &found.1[kind * shape.ghosts() * shape.channels..][..shape.ghosts() * shape.channels];
            near(
                totals(own, shape.channels)[channel],
                [STEP, -STEP].map(|by| loss(&x, &moved(&affine, at, by))),
            );
        }
    }
}

/// A batch in f32 with ghosts of 16 rows, its elements, and derivatives by what comes of them.
fn sixteen_at_once(sizes: [usize; 3]) -> (Shape, [Vec<f32>; 2]) {
    let (dtype, size) = (Float::F32, 16);
    let shape = Shape {
        dtype,
        size,
        ..shape(sizes)
    };
    let of = |seed| {
        numbers(sizes.iter().product(), seed)
            .iter()
            .map(|&x| x as f32)
            .collect()
    };
    (shape, [1, 4].map(of))
}

/// What both passes write, in f32.
fn in_f32(shape: &Shape, x: &[f32], dy: &[f32], threads: usize) -> (Vec<f32>, Vec<f64>, Vec<f32>, Vec<f64>) {
    let numbers = numbers(2 * shape.channels, 2);
    let affine = affine_of(&numbers);
    let of_ghosts = |kinds: usize| vec![0.0; kinds * shape.ghosts() * shape.channels];
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let (mut known, mut found) = (of_ghosts(3), of_ghosts(2));
    let from = [x, dy].map(|each| each.as_ptr().cast::<u8>());
    let to = [&mut y, &mut dx].map(|each| each.as_mut_ptr().cast::<u8>());
    // SAFETY: the vectors are as long as the shape says, and apart.
    unsafe {
        forward(shape, from[0], to[0], affine, EPS, &mut known, threads);
        backward(shape, from, to[1], affine.weight, &known, &mut found, threads);
    }
    (y, known, dx, found)
}

#[test]
fn instruction_sets_and_threads_change_no_bit() {
    let before = Isa::current();
    for sizes in [[40, 70, 1], [67, 3, 49], [32, 2, 1100], [300, 1100, 1]] {
        let (shape, [x, dy]) = sixteen_at_once(sizes);
        let expected = in_f32(&shape, &x, &dy, 1);
        for isa in Isa::supported() {
            isa.select();
            for threads in [1, 3] {
                assert!(in_f32(&shape, &x, &dy, threads) == expected, "{isa:?} {threads}");
            }
        }
        before.select();
    }
}

#[test]
fn a_batch_past_the_caches_gets_what_its_ghosts_get_each_by_itself() {
    let (shape, [x, dy]) = sixteen_at_once([50, 4, 16_500]);
    assert!(size_of_val(&x[..]) >= STREAMED);
    let (y, _, dx, _) = in_f32(&shape, &x, &dy, 2);
    for ghost in 0..shape.ghosts() {
        let rows = shape.rows_of(ghost);
        let row = shape.channels * shape.run;
        let own = rows.start * row..rows.end * row;
        let of_ghost = Shape {
            rows: rows.len(),
            size: rows.len(),
            ..shape
        };
        let found = in_f32(&of_ghost, &x[own.clone()], &dy[own.clone()], 1);
        assert!(y[own.clone()] == found.0 && dx[own] == found.2, "{ghost}");
    }
}

#[test]
fn a_first_row_far_from_the_others_costs_no_digits() {
    let shape = Shape {
        dtype: Float::F32,
        rows: 4096,
        channels: 3,
        run: 1,
        size: 4096,
    };
    let mut x: Vec<f32> = numbers(shape.rows * shape.channels, 1)
        .iter()
        .map(|&x| x as f32 + 1000.0)
        .collect();
    x[..shape.channels].fill(0.0);
    let (_, known, ..) = in_f32(&shape, &x, &x, 1);
    for channel in 0..shape.channels {
        let own = x
            .iter()
            .skip(channel)
            .step_by(shape.channels)
            .map(|&x| f64::from(x));
        let mean = own.clone().sum::<f64>() / shape.rows as f64;
        let variance = own.map(|x| (x - mean).powi(2)).sum::<f64>() / (shape.rows - 1) as f64;
        for (found, expected) in [(known[channel], mean), (known[6 + channel], variance)] {
            assert!((found / expected - 1.0).abs() < 2e-7, "{found} {expected}");
        }
    }
}

#[test]
fn running_statistics_move_by_each_ghost_and_are_rounded_once() {
    let mut running = [1.0_f32, 2.0];
    let channels = Channels {
        data: running.as_mut_ptr().cast(),
        dtype: Float::F32,
        len: 2,
    };
    // SAFETY: as many are there.
    unsafe { channels.follow(&[3.0, 0.0, 5.0, 4.0], Some(0.5), 9.0) };
    assert_eq!(running, [3.5, 2.5]);
    // SAFETY: as above.
    unsafe { channels.follow(&[3.5, 10.0, 7.0, 4.0], None, 1.0) };
    assert_eq!(running, [14.0 / 3.0, 16.5 / 3.0]);
}
