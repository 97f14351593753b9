//! The task lists of the iterations at work, kept because every task of an iteration is asked for, and drawing one draws
//! them all.

use config::{TaskKind, TaskSpec};
use std::collections::VecDeque;

/// Lists that are kept: with lag 1, two iterations are sampled beside an evaluation.
const KEPT: usize = 4;

/// Iteration and kind of a list.
type ListName = (u32, TaskKind);

/// The lists that were asked for last.
#[derive(Clone, Debug, Default)]
pub struct DrawnTasks {
    /// The newest last.
    lists: VecDeque<(ListName, Vec<TaskSpec>)>,
}

impl DrawnTasks {
    /// The list of that name, which `draw` makes where it is not kept.
    pub fn of(&mut self, name: ListName, draw: impl FnOnce() -> Vec<TaskSpec>) -> &[TaskSpec] {
        let kept = self.lists.iter().position(|(known, _)| *known == name);
        let position = kept.unwrap_or_else(|| {
            if self.lists.len() == KEPT {
                self.lists.pop_front();
            }
            self.lists.push_back((name, draw()));
            self.lists.len() - 1
        });
        &self.lists[position].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_drawn_once_while_its_iteration_is_at_work() {
        let (mut drawn, mut n_drawn) = (DrawnTasks::default(), 0);
        for iteration in 0..100 {
            for _ in 0..50 {
                for name in [
                    (iteration, TaskKind::Evaluate),
                    (iteration, TaskKind::Train),
                    (iteration + 1, TaskKind::Train),
                ] {
                    drawn.of(name, || {
                        n_drawn += 1;
                        Vec::new()
                    });
                }
            }
        }
        assert_eq!(n_drawn, 201);
        assert_eq!(drawn.lists.len(), KEPT);
    }
}
