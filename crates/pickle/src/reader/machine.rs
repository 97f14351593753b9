//! The stack machine that a pickle is a program for, with calls recorded rather than made.

use std::collections::HashMap;

use crate::error::{PickleError, Problem};
use crate::opcode::*;
use crate::reader::Limits;
use crate::reader::arena::{Arena, CallNode, Node, NodeId};
use crate::reader::input::{Input, utf8};
use crate::text::{decimal, float, raw_unicode_escape};
use crate::value::Value;

const NEWEST_PROTOCOL: u8 = 5;

pub(super) struct Machine<'a> {
    input: Input<'a>,
    limits: &'a Limits,
    arena: Arena,
    stack: Vec<NodeId>,
    /// How high the stack was at each mark that is still open.
    marks: Vec<usize>,
    memo: HashMap<u64, NodeId>,
    opcode: Option<u8>,
    offset: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a Limits) -> Self {
        Self {
            input: Input::new(bytes),
            limits,
            arena: Arena::new(limits.values),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            opcode: None,
            offset: 0,
        }
    }

    /// Runs up to STOP.
    pub(super) fn run(mut self) -> Result<Self, PickleError> {
        while self.opcode != Some(STOP) {
            self.offset = self.input.position();
            self.opcode = None;
            let done = self.next_opcode().and_then(|opcode| {
                self.opcode = Some(opcode);
                self.step(opcode)
            });
            done.map_err(|problem| self.error(problem))?;
        }
        Ok(self)
    }

    pub(super) fn n_bytes_read(&self) -> usize {
        self.input.position()
    }

    pub(super) fn end_of_input(&self) -> Result<(), PickleError> {
        match self.input.n_left() {
            0 => Ok(()),
            left => Err(self.error(Problem::Trailing(left))),
        }
    }

    /// What the program left on the stack.
    pub(super) fn result(&self) -> Result<Value, PickleError> {
        let tree = match self.stack[..] {
            [] => Err(Problem::EmptyStack),
            [root] => self.arena.tree(root, self.limits),
            _ => Err(Problem::LeftOver(self.stack.len() - 1)),
        };
        tree.map_err(|problem| self.error(problem))
    }

    fn error(&self, problem: Problem) -> PickleError {
        PickleError { opcode: self.opcode, offset: self.offset, problem }
    }

    fn next_opcode(&mut self) -> Result<u8, Problem> {
        let allowed = self.limits.bytes;
        if self.input.position() > allowed {
            return Err(Problem::TooMuch { what: "bytes", allowed });
        }
        Ok(self.input.array::<1>()?[0])
    }

    fn step(&mut self, opcode: u8) -> Result<(), Problem> {
        match opcode {
            PROTO | FRAME | STOP => self.framing(opcode),
            MARK | POP | POP_MARK | DUP => self.shuffle(opcode),
            PUT | BINPUT | LONG_BINPUT | MEMOIZE => self.store(opcode),
            GET | BINGET | LONG_BINGET => self.recall(opcode),
            APPEND | APPENDS | SETITEM | SETITEMS | ADDITEMS => self.extend(opcode),
            LIST | TUPLE | DICT | FROZENSET | TUPLE1 | TUPLE2 | TUPLE3 => self.collect(opcode),
            GLOBAL | STACK_GLOBAL => self.global(opcode),
            REDUCE | NEWOBJ => self.call(),
            BUILD => self.build(),
            PERSID | BINPERSID => self.persistent_id(opcode),
            EMPTY_LIST => self.push(Node::List(Vec::new())),
            EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            EMPTY_SET => self.push(Node::Set(Vec::new())),
            _ => {
                let leaf = self.leaf(opcode)?;
                self.push(Node::Leaf(leaf))
            }
        }
    }

    fn leaf(&mut self, opcode: u8) -> Result<Value, Problem> {
        let input = &mut self.input;
        Ok(match opcode {
            NONE => Value::None,
            NEWTRUE => Value::Bool(true),
            NEWFALSE => Value::Bool(false),
            INT => match input.line()? {
                b"00" => Value::Bool(false),
                b"01" => Value::Bool(true),
                digits => Value::Int(decimal(digits).ok_or(Problem::Number)?),
            },
            LONG => Value::Int(decimal(input.line()?).ok_or(Problem::Number)?),
            BININT => Value::Int(i32::from_le_bytes(input.array()?).into()),
            BININT1 => Value::Int(u8::from_le_bytes(input.array()?).into()),
            BININT2 => Value::Int(u16::from_le_bytes(input.array()?).into()),
            LONG1 => Value::Int(input.long(1)?),
            LONG4 => Value::Int(input.long(4)?),
            FLOAT => Value::Float(float(input.line()?).ok_or(Problem::Number)?),
            BINFLOAT => Value::Float(f64::from_be_bytes(input.array()?)),
            UNICODE => Value::String(raw_unicode_escape(input.line()?).ok_or(Problem::Text)?),
            SHORT_BINUNICODE => Value::String(input.text(1)?),
            BINUNICODE => Value::String(input.text(4)?),
            BINUNICODE8 => Value::String(input.text(8)?),
            SHORT_BINBYTES => Value::Bytes(input.counted(1)?.to_vec()),
            BINBYTES => Value::Bytes(input.counted(4)?.to_vec()),
            BINBYTES8 | BYTEARRAY8 => Value::Bytes(input.counted(8)?.to_vec()),
            _ => return Err(Problem::UnknownOpcode),
        })
    }

    fn framing(&mut self, opcode: u8) -> Result<(), Problem> {
        match opcode {
            PROTO => match self.input.array::<1>()?[0] {
                protocol if protocol > NEWEST_PROTOCOL => Err(Problem::Protocol(protocol)),
                _ => Ok(()),
            },
            FRAME => {
                let (needed, left) = (self.input.unsigned(8)?, self.input.n_left());
                if needed > left as u64 { Err(Problem::Truncated { needed, left }) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn shuffle(&mut self, opcode: u8) -> Result<(), Problem> {
        match opcode {
            MARK => self.marks.push(self.stack.len()),
            POP_MARK => drop(self.pop_to_mark()?),
            DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // POP also takes away a mark that has nothing above it.
            _ if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            _ => drop(self.pop()?),
        }
        Ok(())
    }

    fn store(&mut self, opcode: u8) -> Result<(), Problem> {
        let index = match opcode {
            PUT => line_number(self.input.line()?)?,
            BINPUT => self.input.unsigned(1)?,
            LONG_BINPUT => self.input.unsigned(4)?,
            _ => self.memo.len() as u64,
        };
        let top = self.top()?;
        let allowed = self.limits.values;
        if self.memo.len() >= allowed {
            return Err(Problem::TooMuch { what: "memo entries", allowed });
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), Problem> {
        let index = match opcode {
            GET => line_number(self.input.line()?)?,
            BINGET => self.input.unsigned(1)?,
            _ => self.input.unsigned(4)?,
        };
        let id = *self.memo.get(&index).ok_or(Problem::NotInMemo(index))?;
        self.stack.push(id);
        Ok(())
    }

    fn extend(&mut self, opcode: u8) -> Result<(), Problem> {
        let added = match opcode {
            APPEND => vec![self.pop()?],
            SETITEM => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.top()?;
        match (opcode, self.arena.node_mut(target)) {
            (APPEND | APPENDS, Node::List(elements)) | (ADDITEMS, Node::Set(elements)) => {
                elements.extend(added);
            }
            (APPEND | APPENDS, Node::Call(call)) => call.appended.extend(added),
            (SETITEM | SETITEMS, Node::Dict(items)) => items.extend(pairs(&added)?),
            (SETITEM | SETITEMS, Node::Call(call)) => call.items.extend(pairs(&added)?),
            (APPEND | APPENDS, _) => return Err(Problem::Kind { needed: "a list" }),
            (ADDITEMS, _) => return Err(Problem::Kind { needed: "a set" }),
            _ => return Err(Problem::Kind { needed: "a dict" }),
        }
        Ok(())
    }

    fn collect(&mut self, opcode: u8) -> Result<(), Problem> {
        let parts = match opcode {
            TUPLE1 => self.pop_n(1)?,
            TUPLE2 => self.pop_n(2)?,
            TUPLE3 => self.pop_n(3)?,
            _ => self.pop_to_mark()?,
        };
        self.push(match opcode {
            LIST => Node::List(parts),
            DICT => Node::Dict(pairs(&parts)?),
            FROZENSET => Node::Set(parts),
            _ => Node::Tuple(parts),
        })
    }

    fn global(&mut self, opcode: u8) -> Result<(), Problem> {
        let (module, name) = if opcode == GLOBAL {
            (self.text_line()?, self.text_line()?)
        } else {
            let name = self.pop()?;
            (self.pop()?, name)
        };
        for id in [module, name] {
            let Node::Leaf(Value::String(_)) = self.arena.node(id) else {
                return Err(Problem::Kind { needed: "strings" });
            };
        }
        self.push(Node::Global(module, name))
    }

    fn call(&mut self) -> Result<(), Problem> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Node::Global(..) = self.arena.node(function) else {
            return Err(Problem::Kind { needed: "a global" });
        };
        let Node::Tuple(_) = self.arena.node(arguments) else {
            return Err(Problem::Kind { needed: "a tuple of arguments" });
        };
        let (appended, items) = (Vec::new(), Vec::new());
        self.push(Node::Call(Box::new(CallNode { function, arguments, state: None, appended, items })))
    }

    fn build(&mut self) -> Result<(), Problem> {
        let state = self.pop()?;
        let target = self.top()?;
        let Node::Call(call) = self.arena.node_mut(target) else {
            return Err(Problem::Kind { needed: "the result of a call" });
        };
        call.state = Some(state);
        Ok(())
    }

    fn persistent_id(&mut self, opcode: u8) -> Result<(), Problem> {
        let id = match opcode {
            PERSID => self.text_line()?,
            _ => self.pop()?,
        };
        self.push(Node::PersistentId(id))
    }

    fn push(&mut self, node: Node) -> Result<(), Problem> {
        let id = self.arena.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<NodeId, Problem> {
        self.stack[self.floor()..].last().copied().ok_or(Problem::EmptyStack)
    }

    fn pop(&mut self) -> Result<NodeId, Problem> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<NodeId>, Problem> {
        if self.stack.len() - self.floor() < n {
            return Err(Problem::EmptyStack);
        }
        Ok(self.stack.split_off(self.stack.len() - n))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<NodeId>, Problem> {
        let floor = self.marks.pop().ok_or(Problem::NoMark)?;
        Ok(self.stack.split_off(floor))
    }

    fn text_line(&mut self) -> Result<NodeId, Problem> {
        let text = utf8(self.input.line()?)?;
        self.arena.add(Node::Leaf(Value::String(text)))
    }
}

fn pairs(parts: &[NodeId]) -> Result<Vec<(NodeId, NodeId)>, Problem> {
    let (pairs, rest) = parts.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err(Problem::OddItems)
    }
}

fn line_number(line: &[u8]) -> Result<u64, Problem> {
    decimal(line).and_then(|number| u64::try_from(number).ok()).ok_or(Problem::Number)
}
