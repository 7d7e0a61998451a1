//! Labels: the names of axes, one Unicode letter each.

use std::fmt;

/// The name of an axis: one Unicode letter ([`char::is_alphabetic`]), so `i`, `Q`, `λ` and `鍵` are labels.
///
/// Upper and lower case differ. Labels are ordered by code point, as NumPy orders an implicit output.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Label(char);

/// The letters of [`Label::from_index`], in ascending order: A–Z, a–z, Greek α–ω, CJK extension A, CJK, Hangul, then
/// the CJK extensions B to H.
const LETTERS: [(u32, u32); 14] = [
    (0x41, 0x5A),
    (0x61, 0x7A),
    (0x3B1, 0x3C9),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFC),
    (0xAC00, 0xD7A3),
    (0x20000, 0x2A6DD),
    (0x2A700, 0x2B734),
    (0x2B740, 0x2B81D),
    (0x2B820, 0x2CEA1),
    (0x2CEB0, 0x2EBE0),
    (0x2EBF0, 0x2EE5D),
    (0x30000, 0x3134A),
    (0x31350, 0x323AF),
];

impl Label {
    /// The label that `c` spells, or `None` where `c` is not a letter.
    pub fn new(c: char) -> Option<Self> {
        c.is_alphabetic().then_some(Self(c))
    }

    /// The label for an integer subscript of the interleaved form, as NumPy has it: 0 to 25 are `A` to `Z`, 26 to 51
    /// are `a` to `z`. More than 100 000 further letters follow, then `None`.
    ///
    /// Different integers give different labels, and a larger integer gives a larger label, so that an implicit output
    /// is sorted by integer.
    pub fn from_index(i: usize) -> Option<Self> {
        let mut left = u32::try_from(i).ok()?;
        for (first, last) in LETTERS {
            let length = last - first + 1;
            if left < length {
                return char::from_u32(first + left).and_then(Self::new);
            }
            left -= length;
        }
        None
    }

    /// The letter itself.
    pub fn as_char(self) -> char {
        self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_become_letters_as_in_numpy() {
        let text: String = (0..54).map(|i| Label::from_index(i).unwrap().as_char()).collect();
        assert_eq!(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzαβ");
        assert_eq!(Label::from_index(usize::MAX), None);
        assert_eq!(Label::from_index(u32::MAX as usize), None);
    }

    #[test]
    fn integers_become_distinct_ascending_letters() {
        let labels: Vec<Label> = (0..).map_while(Label::from_index).collect();
        assert!(labels.len() >= 100_000, "{}", labels.len());
        assert!(labels.is_sorted_by(|a, b| a < b));
        let listed: u32 = LETTERS.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(labels.len(), listed as usize, "a listed code point is not a letter");
    }

    #[test]
    fn only_letters_are_labels() {
        for c in ['i', 'Q', 'λ', '鍵', '𝐱', 'é'] {
            assert_eq!(Label::new(c).map(Label::as_char), Some(c));
        }
        // Between `Z` and `a` lies punctuation, which a range test `'A'..='z'` would accept.
        for c in ['[', '_', '`', '^', '1', ' ', '.', '\u{301}', '\0', '→', '🦀'] {
            assert_eq!(Label::new(c), None, "{c:?}");
        }
    }
}
