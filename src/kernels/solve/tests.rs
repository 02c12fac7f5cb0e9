use ndarray::{Array1, Array2, Axis, array};

use super::differences::Differences;
use super::*;

fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.0 - 1.0)
        .collect()
}

/// Points as rows: any, of few dimensions, with a duplicate, a zero, opposites, of many sizes, and all of them zero.
fn samples() -> Vec<Array2<f64>> {
    let mut samples = Vec::new();
    for (count, size) in [(1, 3), (2, 3), (5, 7), (5, 2), (30, 40), (30, 11)] {
        let any = Array2::from_shape_vec((count, size), numbers(count * size, count)).unwrap() + 0.1;
        let (first, last) = (any.row(0).to_owned(), count - 1);
        for spoil in 0..6 {
            let mut points = any.clone();
            match spoil {
                1 => points.row_mut(last).assign(&first),
                2 => points.row_mut(last).fill(0.0),
                3 => points.row_mut(last).assign(&-&first),
                4 => (points.rows_mut().into_iter().enumerate())
                    .for_each(|(i, mut row)| row *= 10_f64.powi(i as i32 % 4 - 2)),
                5 => points.fill(0.0),
                _ => {}
            }
            samples.push(points);
        }
    }
    samples
}

fn unlimited<S: Solver>(problem: S::Problem, initial: Option<S::Solution>) -> (S::Solution, Report) {
    solve::<S>(problem, initial, Limits::default(), &mut |_| true)
}

fn norm(points: &Array2<f64>) -> Quadratic {
    Quadratic::norm(points.dot(&points.t()).view())
}

#[test]
fn no_point_has_less_along_the_point_of_least_norm_than_that_itself() {
    for points in samples() {
        let (weights, report) = unlimited::<SimplexQp>(norm(&points), None);
        assert_eq!(report.status, Status::Converged);
        assert!(weights.iter().all(|&w| w >= 0.0) && (weights.sum() - 1.0).abs() < 1e-14);
        let products = points.dot(&points.t());
        let along = products.dot(&weights);
        let largest = products.diag().fold(0.0_f64, |most, &x| most.max(x));
        let least = along.fold(f64::INFINITY, |least, &x| least.min(x));
        assert!(
            weights.dot(&along) - least <= 1e-13 * largest,
            "{points} {weights}"
        );
    }
}

/// No combination w allows a worst gain of more than `<g_w, g_0> + radius |g_w|`.
fn bound(points: &Array2<f64>, mean: &Array1<f64>, radius: f64, weights: &Array1<f64>) -> f64 {
    let worst = weights.dot(points);
    worst.dot(mean) + radius * worst.dot(&worst).sqrt()
}

#[test]
fn cagrad_gains_as_much_as_can_be_gained_in_its_ball() {
    for points in samples() {
        for c in [0.01, 0.1, 0.5, 1.0, 3.0] {
            let norm = norm(&points);
            let (weights, report) = unlimited::<Cagrad>(
                Conflict {
                    norm: norm.clone(),
                    c,
                },
                None,
            );
            assert_eq!(report.status, Status::Converged);
            let mean = points.mean_axis(Axis(0)).unwrap();
            let size = points.map_axis(Axis(1), |row| row.dot(&row)).sum().sqrt();
            let moved = weights.dot(&points);
            let shift = &moved - &mean;
            let radius = c * mean.dot(&mean).sqrt();
            assert!(shift.dot(&shift).sqrt() <= radius + 1e-9 * size, "{points} {c}");
            let gain = points.dot(&moved).fold(f64::INFINITY, |least, &x| least.min(x));
            let moves = &weights - 1.0 / weights.len() as f64;
            let worst = if moves.sum() > 0.0 {
                &moves / moves.sum()
            } else {
                moves
            };
            let hull = unlimited::<SimplexQp>(norm, None).0;
            let most = bound(&points, &mean, radius, &worst).min(bound(&points, &mean, radius, &hull));
            assert!(gain >= most - 1e-6 * size * size, "{points} {c}: {gain} {most}");
        }
    }
}

#[test]
fn upgrads_updates_go_against_no_gradient_and_are_the_nearest_of_those() {
    for points in samples() {
        let (weights, report) = unlimited::<UpGrad>(Cosines::of(points.dot(&points.t()).view()), None);
        assert_eq!(report.status, Status::Converged);
        assert!(
            (&weights - &Array2::<f64>::eye(weights.nrows()))
                .iter()
                .all(|&w| w >= 0.0)
        );
        let squares = points.map_axis(Axis(1), |row| row.dot(&row));
        for (i, update) in weights.dot(&points).rows().into_iter().enumerate() {
            let size = squares[i].sqrt();
            for (gain, square) in points.dot(&update).iter().zip(&squares) {
                assert!(*gain >= -1e-7 * size * square.sqrt(), "{points} {i}");
            }
            let added = &update - &points.row(i);
            assert!(added.dot(&update).abs() <= 1e-7 * squares[i], "{points} {i}");
        }
    }
}

#[test]
fn nashs_tasks_gain_the_same_share() {
    for points in samples() {
        let products = points.dot(&points.t());
        let (weights, report) = unlimited::<Nash>(Cosines::of(products.view()), None);
        assert_eq!(report.status, Status::Converged);
        let size = products.iter().map(|x| x * x).sum::<f64>().sqrt();
        let shares = &weights * &products.dot(&weights);
        for (i, (&weight, &share)) in weights.iter().zip(&shares).enumerate() {
            // Where 0 is a combination, the weights end where what is added to the squares has its share.
            let added = 1e-12 * weight * weight * products[[i, i]];
            let expected = if products[[i, i]] > 0.0 { size } else { 0.0 };
            assert!(weight.is_finite() && (weight > 0.0) == (products[[i, i]] > 0.0));
            assert!(
                (share + added - expected).abs() <= 1e-2 * size,
                "{points} {weights}"
            );
        }
    }
}

#[test]
fn the_solution_is_left_at_once_and_any_other_start_leads_to_it() {
    for points in samples() {
        let (cold, _) = unlimited::<SimplexQp>(norm(&points), None);
        let (same, report) = unlimited::<SimplexQp>(norm(&points), Some(cold.clone()));
        assert_eq!((report.steps, same), (0, cold.clone()));
        let all = Array1::from_elem(cold.len(), 1.0 / cold.len() as f64);
        let (warm, report) = unlimited::<SimplexQp>(norm(&points), Some(all));
        assert_eq!(report.status, Status::Converged);
        let difference = (warm - cold).dot(&points);
        let largest = points.fold(0.0_f64, |most, &x| most.max(x.abs()));
        assert!(difference.dot(&difference).sqrt() <= 1e-6 * largest, "{points}");
    }
}

#[test]
fn points_that_joined_and_left_are_as_if_they_had_not_been_there() {
    let points = Array2::from_shape_vec((9, 12), numbers(108, 3)).unwrap();
    let products = points.dot(&points.t());
    let slopes = Array1::from(numbers(9, 4));
    for places in [
        vec![0],
        vec![3],
        vec![7],
        vec![0, 0, 0],
        vec![5, 0, 2],
        vec![0; 8],
    ] {
        let mut changed = Differences::new(9, 1e-20);
        (0..9).for_each(|point| changed.join(point, products.view()));
        places.iter().for_each(|&place| changed.leave(place));
        let mut fresh = Differences::new(9, 1e-20);
        (changed.members.iter()).for_each(|&point| fresh.join(point, products.view()));
        let error = changed.level(&slopes) - fresh.level(&slopes);
        assert!(error.iter().all(|x| x.abs() < 1e-13), "{places:?}");
    }
}

#[test]
fn numbers_that_are_no_inner_products_end_the_search_too() {
    for products in [
        array![[f64::NAN, 1.0], [1.0, 1.0]],
        array![[-1.0, 0.5], [0.5, -2.0]],
        array![[1.0, 5.0], [-5.0, 1.0]],
        array![[0.0, 1.0], [1.0, 0.0]],
    ] {
        let norm = Quadratic::norm(products.view());
        assert!(unlimited::<SimplexQp>(norm.clone(), None).1.steps < 20);
        assert!(unlimited::<Cagrad>(Conflict { norm, c: 0.5 }, None).1.steps < 1000);
        let cosines = Cosines::of(products.view());
        assert!(unlimited::<UpGrad>(cosines.clone(), None).1.steps < 50);
        assert!(unlimited::<Nash>(cosines, None).1.steps < 1000);
    }
}

/// Counts down.
struct Countdown(usize);

impl Solver for Countdown {
    type Problem = usize;
    type Solution = usize;

    fn start(problem: usize, initial: Option<usize>) -> Self {
        Countdown(initial.unwrap_or(problem))
    }
    fn step(&mut self) {
        self.0 -= 1;
    }
    fn stop(&self) -> Option<Status> {
        (self.0 == 0).then_some(Status::Converged)
    }
    fn gap(&self) -> f64 {
        self.0 as f64
    }
    fn solution(&self) -> usize {
        self.0
    }
}

#[test]
fn a_solver_runs_to_its_end_its_limit_or_the_observers_word() {
    let always = Duration::ZERO;
    let run = |initial, steps, every, patience: usize| {
        let mut seen = Vec::new();
        let mut observe = |report: &Report| {
            seen.push(*report);
            seen.len() <= patience
        };
        let (left, report) = solve::<Countdown>(10, initial, Limits { steps, every }, &mut observe);
        assert_eq!(report.gap, left as f64);
        assert!(seen.iter().all(|report| report.status == Status::Running));
        (left, report.steps, report.status, seen.len())
    };
    assert_eq!(run(None, 99, always, 99), (0, 10, Status::Converged, 10));
    assert_eq!(run(None, 99, Duration::MAX, 99), (0, 10, Status::Converged, 0));
    assert_eq!(run(Some(3), 99, always, 99), (0, 3, Status::Converged, 3));
    assert_eq!(run(Some(0), 0, always, 99), (0, 0, Status::Converged, 0));
    assert_eq!(run(None, 4, always, 99), (6, 4, Status::OutOfSteps, 4));
    assert_eq!(run(None, 99, always, 2), (8, 2, Status::Interrupted, 3));
}

#[test]
fn an_observer_changes_no_bit() {
    let points = Array2::from_shape_vec((40, 60), numbers(2400, 1)).unwrap();
    let every = |every| {
        let limits = Limits {
            every,
            ..Limits::default()
        };
        let mut asked = 0;
        let mut observe = |_: &Report| {
            asked += 1;
            true
        };
        let problem = Conflict {
            norm: norm(&points),
            c: 0.5,
        };
        let solved = solve::<Cagrad>(problem, None, limits, &mut observe);
        (solved, asked)
    };
    let ((seldom, one), never) = every(Duration::MAX);
    let ((often, other), asked) = every(Duration::ZERO);
    assert_eq!((never, asked), (0, one.steps));
    assert_eq!((seldom, one), (often, other));
}

#[test]
fn what_is_known_when_the_steps_run_out_is_a_point_of_the_simplex() {
    let points = Array2::from_shape_vec((30, 40), numbers(1200, 2)).unwrap();
    for steps in 0..30 {
        let limits = Limits {
            steps,
            ..Limits::default()
        };
        let (weights, report) = solve::<SimplexQp>(norm(&points), None, limits, &mut |_| true);
        assert!(weights.iter().all(|&w| w >= 0.0) && (weights.sum() - 1.0).abs() < 1e-14);
        assert!(report.steps <= steps && (report.gap > 0.0 || report.status == Status::Converged));
    }
}
