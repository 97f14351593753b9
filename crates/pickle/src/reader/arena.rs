//! The values while a pickle is read: each once and pointed at by number, since later opcodes add to earlier values,
//! and since copies made on the way would let a short pickle take any amount of time.

use crate::error::Problem;
use crate::reader::Limits;
use crate::value::{Call, Global, Value};

/// The number of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeId(usize);

pub(super) enum Node {
    /// A value without parts.
    Leaf(Value),
    List(Vec<NodeId>),
    Tuple(Vec<NodeId>),
    Dict(Vec<(NodeId, NodeId)>),
    Set(Vec<NodeId>),
    /// Its module and name, both strings.
    Global(NodeId, NodeId),
    Call(Box<CallNode>),
    PersistentId(NodeId),
}

pub(super) struct CallNode {
    /// A global.
    pub(super) function: NodeId,
    /// A tuple.
    pub(super) arguments: NodeId,
    pub(super) state: Option<NodeId>,
    pub(super) appended: Vec<NodeId>,
    pub(super) items: Vec<(NodeId, NodeId)>,
}

pub(super) struct Arena {
    nodes: Vec<Node>,
    n_allowed: usize,
}

impl Arena {
    pub(super) fn new(n_allowed: usize) -> Self {
        Self { nodes: Vec::new(), n_allowed }
    }

    pub(super) fn add(&mut self, node: Node) -> Result<NodeId, Problem> {
        if self.nodes.len() >= self.n_allowed {
            return Err(Problem::TooMuch { what: "values", allowed: self.n_allowed });
        }
        self.nodes.push(node);
        Ok(NodeId(self.nodes.len() - 1))
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// The tree under a node, in which what is referred to twice stands twice.
    ///
    /// A value that contains itself ends at the limit of depth or of values.
    pub(super) fn tree(&self, root: NodeId, limits: &Limits) -> Result<Value, Problem> {
        Growth { arena: self, limits, n_values: 0, n_bytes: 0 }.value(root, 0)
    }
}

/// How much of the limits a tree has used up.
struct Growth<'a> {
    arena: &'a Arena,
    limits: &'a Limits,
    n_values: usize,
    n_bytes: usize,
}

impl Growth<'_> {
    fn value(&mut self, id: NodeId, depth: usize) -> Result<Value, Problem> {
        let Limits { values, depth: deepest, .. } = *self.limits;
        if depth >= deepest {
            return Err(Problem::TooMuch { what: "levels of values", allowed: deepest });
        }
        self.n_values += 1;
        if self.n_values > values {
            return Err(Problem::TooMuch { what: "values", allowed: values });
        }
        let below = depth + 1;
        Ok(match self.arena.node(id) {
            Node::Leaf(leaf) => {
                self.count_bytes(match leaf {
                    Value::Bytes(bytes) => bytes.len(),
                    Value::String(text) => text.len(),
                    _ => 0,
                })?;
                leaf.clone()
            }
            Node::List(elements) => Value::List(self.values(elements, below)?),
            Node::Tuple(elements) => Value::Tuple(self.values(elements, below)?),
            Node::Set(elements) => Value::Set(self.values(elements, below)?),
            Node::Dict(items) => Value::Dict(self.items(items, below)?),
            Node::Global(..) => Value::Global(self.global(id)?),
            Node::Call(call) => Value::Call(Box::new(self.call(call, below)?)),
            Node::PersistentId(id) => Value::PersistentId(Box::new(self.value(*id, below)?)),
        })
    }

    fn call(&mut self, call: &CallNode, depth: usize) -> Result<Call, Problem> {
        let Node::Tuple(arguments) = self.arena.node(call.arguments) else {
            return Err(Problem::Kind { needed: "a tuple of arguments" });
        };
        Ok(Call {
            function: self.global(call.function)?,
            arguments: self.values(arguments, depth)?,
            state: call.state.map(|state| self.value(state, depth)).transpose()?,
            appended: self.values(&call.appended, depth)?,
            items: self.items(&call.items, depth)?,
        })
    }

    fn global(&mut self, id: NodeId) -> Result<Global, Problem> {
        let Node::Global(module, name) = *self.arena.node(id) else {
            return Err(Problem::Kind { needed: "a global" });
        };
        Ok(Global { module: self.text(module)?, name: self.text(name)? })
    }

    fn text(&mut self, id: NodeId) -> Result<String, Problem> {
        let Node::Leaf(Value::String(text)) = self.arena.node(id) else {
            return Err(Problem::Kind { needed: "a string" });
        };
        self.count_bytes(text.len())?;
        Ok(text.clone())
    }

    fn values(&mut self, ids: &[NodeId], depth: usize) -> Result<Vec<Value>, Problem> {
        ids.iter().map(|&id| self.value(id, depth)).collect()
    }

    fn items(&mut self, ids: &[(NodeId, NodeId)], depth: usize) -> Result<Vec<(Value, Value)>, Problem> {
        ids.iter().map(|&(key, value)| Ok((self.value(key, depth)?, self.value(value, depth)?))).collect()
    }

    fn count_bytes(&mut self, n_bytes: usize) -> Result<(), Problem> {
        self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        let allowed = self.limits.bytes;
        if self.n_bytes > allowed {
            return Err(Problem::TooMuch { what: "bytes of text and byte strings", allowed });
        }
        Ok(())
    }
}
