//! PEFT's layout of experts' pairs, and ours.
//!
//! PEFT keeps A as [e * r, in], row `e_index * r + r_index`, and B as [out, r * e], column `r_index * e + e_index`: A goes by expert first,
//! B by rank first. Adapters of some versions hold the update transposed: what serves as A there has the width of the output.
//!
//! Source: PEFT 0.21 `tuners/lora/layer.py`, `ParamWrapper.get_delta_weight`.

/// B [e, out, r] from PEFT's [out, r * e].
#[must_use]
pub fn b_from_peft(b: &[f32], experts: usize, output: usize, rank: usize) -> Vec<f32> {
    let mut ours = vec![0.0; b.len()];
    for (from, to) in b_positions(experts, output, rank) {
        ours[to] = b[from];
    }
    ours
}

/// PEFT's B [out, r * e] from [e, out, r].
#[must_use]
pub fn b_to_peft(b: &[f32], experts: usize, output: usize, rank: usize) -> Vec<f32> {
    let mut theirs = vec![0.0; b.len()];
    for (to, from) in b_positions(experts, output, rank) {
        theirs[to] = b[from];
    }
    theirs
}

/// Where each element of B is in PEFT's layout, and in ours.
fn b_positions(experts: usize, output: usize, rank: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..output).flat_map(move |o| {
        (0..rank).flat_map(move |r| (0..experts).map(move |e| ((o * rank + r) * experts + e, (e * output + o) * rank + r)))
    })
}

/// A [e, r, in] from the B [in, r * e] of a transposed adapter.
pub(super) fn a_from_swapped(b: &[f32], experts: usize, input: usize, rank: usize) -> Vec<f32> {
    let mut ours = vec![0.0; b.len()];
    for i in 0..input {
        for r in 0..rank {
            for e in 0..experts {
                ours[(e * rank + r) * input + i] = b[(i * rank + r) * experts + e];
            }
        }
    }
    ours
}

/// B [e, out, r] from the A [e * r, out] of a transposed adapter.
pub(super) fn b_from_swapped(a: &[f32], experts: usize, output: usize, rank: usize) -> Vec<f32> {
    let mut ours = vec![0.0; a.len()];
    for e in 0..experts {
        for r in 0..rank {
            for o in 0..output {
                ours[(e * output + o) * rank + r] = a[(e * rank + r) * output + o];
            }
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: usize = 3;
    const R: usize = 2;
    const I: usize = 5;
    const O: usize = 4;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|index| (index * 7 % 31) as f32 - 15.0).collect()
    }

    /// sum over r of b[e][o][r] * a[e][r][i], in our layout.
    fn delta(a: &[f32], b: &[f32], e: usize, i: usize, o: usize) -> f32 {
        (0..R).map(|r| b[(e * O + o) * R + r] * a[(e * R + r) * I + i]).sum()
    }

    /// `einsum("o r e, e r i -> e i o", B.reshape(out, r, e), A.reshape(e, r, in))`
    #[test]
    fn the_update_is_that_of_peft() {
        let (a, b) = (numbers(E * R * I), numbers(O * R * E));
        let our_b = b_from_peft(&b, E, O, R);
        for e in 0..E {
            for i in 0..I {
                for o in 0..O {
                    let theirs: f32 = (0..R).map(|r| b[o * R * E + r * E + e] * a[(e * R + r) * I + i]).sum();
                    assert_eq!(delta(&a, &our_b, e, i, o), theirs);
                }
            }
        }
    }

    /// `einsum("o r e, e r i -> e o i", ...)` on the parameter [e, in, out]: PEFT's o is our input, its i our output.
    #[test]
    fn the_update_of_a_transposed_adapter_is_that_of_peft() {
        let (a, b) = (numbers(E * R * O), numbers(I * R * E));
        let (our_a, our_b) = (a_from_swapped(&b, E, I, R), b_from_swapped(&a, E, O, R));
        for e in 0..E {
            for i in 0..I {
                for o in 0..O {
                    let theirs: f32 = (0..R).map(|r| b[i * R * E + r * E + e] * a[(e * R + r) * O + o]).sum();
                    assert_eq!(delta(&our_a, &our_b, e, i, o), theirs);
                }
            }
        }
    }

    #[test]
    fn there_and_back_is_the_identity() {
        let b = numbers(E * O * R);
        assert_eq!(b_from_peft(&b_to_peft(&b, E, O, R), E, O, R), b);
    }
}
