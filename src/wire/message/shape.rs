//! What a statement's description says, boiled down to what can be kept and compared: its parameters'
//! types, its columns' names and types, and their modifiers.
//!
//! Where a column comes from is left out, as the server leaves it out when it compares: a table that was made
//! anew with the same columns is no other shape. So are formats, which belong to each Bind.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use super::rows;

/// A digest of each part, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The parameters' types.
    parameters: Option<NonZeroU64>,
    /// The columns' names and types, or that there are none.
    columns: Option<NonZeroU64>,
    /// The columns' modifiers, which a statement's description tells and a portal's may tell otherwise: its
    /// plan may know less of them.
    modifiers: Option<NonZeroU64>,
}

impl Shape {
    /// Takes in a `ParameterDescription`, `RowDescription` or `NoData`; `portal`: of a portal.
    pub fn learn(&mut self, frame: &[u8], portal: bool) {
        let tag = frame.first();
        if tag == Some(&b't') {
            self.parameters = Some(digest(&frame));
            return;
        }
        let (columns, modifiers) = match rows::read_description(frame) {
            Ok(columns) => {
                let named: Vec<_> = columns.iter().map(|c| (c.name, c.type_oid)).collect();
                let modifiers: Vec<_> = columns.iter().map(|c| c.modifier).collect();
                (digest(&named), digest(&modifiers))
            }
            // No rows; and a frame that can't be read is like nothing but itself.
            Err(_) => (digest(&frame), digest(&frame)),
        };
        if !portal {
            self.modifiers = Some(modifiers);
        } else if self.columns != Some(columns) {
            self.modifiers = None;
        }
        self.columns = Some(columns);
    }

    /// Whether nothing is known.
    pub fn is_blank(&self) -> bool {
        *self == Self::default()
    }

    /// Whether only columns are known, as from a portal's description.
    pub fn is_portals(&self) -> bool {
        self.parameters.is_none()
    }

    /// Whether the columns are known and those of `other`.
    pub fn has_columns_of(&self, other: &Self) -> bool {
        self.columns.is_some() && self.columns == other.columns
    }

    /// Whether all is known.
    pub fn is_whole(&self) -> bool {
        self.parameters.is_some() && self.columns.is_some() && self.modifiers.is_some()
    }

    /// Whether a statement of the shape `other` is all that this one says; `None` where too little is known of
    /// `other`.
    pub fn holds_for(&self, other: &Self) -> Option<bool> {
        let parts = [
            (self.parameters, other.parameters),
            (self.columns, other.columns),
            (self.modifiers, other.modifiers),
        ];
        let told = parts.iter().filter(|(told, _)| told.is_some());
        let differs = |(told, here): &&(_, Option<NonZeroU64>)| here.is_some() && told != here;
        if told.clone().any(|part| differs(&part)) {
            return Some(false);
        }
        let known = told.clone().all(|(_, here)| here.is_some());
        known.then_some(true)
    }
}

fn digest(what: &impl Hash) -> NonZeroU64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::backend;
    use crate::wire::message::rows::Column;
    use bytes::BytesMut;

    fn columns(columns: &[Column<'_>]) -> BytesMut {
        let mut frame = BytesMut::new();
        rows::description(&mut frame, columns).unwrap();
        frame
    }

    fn parameters(types: &[u32]) -> BytesMut {
        let mut frame = BytesMut::new();
        rows::parameters(&mut frame, types).unwrap();
        frame
    }

    fn shape(types: &[u32], frame: &[u8]) -> Shape {
        let mut shape = Shape::default();
        shape.learn(&parameters(types), false);
        shape.learn(frame, false);
        shape
    }

    #[test]
    fn names_types_and_modifiers_make_the_shape() {
        let plain = Column::computed("n", 23, 4);
        let told = shape(&[23], &columns(&[plain]));
        let moved = Column {
            table: 7,
            attribute: 2,
            format: 1,
            ..plain
        };
        assert_eq!(
            told.holds_for(&shape(&[23], &columns(&[moved]))),
            Some(true)
        );
        let mut none = BytesMut::new();
        backend::no_data(&mut none);
        for other in [
            shape(&[25], &columns(&[plain])),
            shape(&[23, 23], &columns(&[plain])),
            shape(&[23], &columns(&[plain, plain])),
            shape(
                &[23],
                &columns(&[Column {
                    name: b"m",
                    ..plain
                }]),
            ),
            shape(
                &[23],
                &columns(&[Column {
                    type_oid: 25,
                    ..plain
                }]),
            ),
            shape(
                &[23],
                &columns(&[Column {
                    modifier: 9,
                    ..plain
                }]),
            ),
            shape(&[23], &none),
        ] {
            assert_eq!(told.holds_for(&other), Some(false));
        }
    }

    #[test]
    fn what_is_not_known_is_neither_alike_nor_other() {
        let frame = columns(&[Column::computed("n", 23, 4)]);
        let whole = shape(&[23], &frame);
        assert_eq!(whole.holds_for(&Shape::default()), None);
        let mut portal = Shape::default();
        portal.learn(&frame, true);
        assert!(portal.is_portals() && !portal.is_blank());
        assert_eq!(portal.holds_for(&whole), Some(true));
        assert_eq!(whole.holds_for(&portal), None);
        let mut other = Shape::default();
        other.learn(&columns(&[Column::computed("n", 25, -1)]), true);
        assert_eq!(whole.holds_for(&other), Some(false));
        // What a portal tells anew takes the place of what was told before.
        let mut again = whole;
        again.learn(&columns(&[Column::computed("n", 25, -1)]), true);
        assert!(again.has_columns_of(&other));
    }
}
