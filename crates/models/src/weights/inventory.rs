//! What components hold, counted while their networks are built without memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tch::Kind;

/// What one component holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentSize {
    /// Numbers, tables included.
    pub parameters: u64,
    /// Bytes of them in the element type they are converted to.
    pub bytes: u64,
    /// Bytes of the largest tensor.
    pub largest_tensor_bytes: u64,
}

/// The sizes of the components that were opened with it, by the names of their folders.
#[derive(Clone, Debug, Default)]
pub struct Inventory(Rc<RefCell<BTreeMap<String, ComponentSize>>>);

impl Inventory {
    /// The components in the order of their names.
    pub fn components(&self) -> Vec<(String, ComponentSize)> {
        self.0.borrow().iter().map(|(name, size)| (name.clone(), *size)).collect()
    }

    pub(super) fn add(&self, component: &str, shape: &[i64], kind: Kind) {
        let parameters = shape.iter().product::<i64>() as u64;
        let bytes = parameters * kind.elt_size_in_bytes() as u64;
        let mut components = self.0.borrow_mut();
        let size = components.entry(component.to_owned()).or_default();
        size.parameters += parameters;
        size.bytes += bytes;
        size.largest_tensor_bytes = size.largest_tensor_bytes.max(bytes);
    }
}
