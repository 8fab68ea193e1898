//! A pickle is read, never run: an interpreter of the few instructions that a plain dictionary of tensors needs.
//!
//! Values live in an arena and refer to each other by index: memory is linear in the pickle's length, whatever it
//! repeats through its memo, and nothing recurses.

use std::collections::HashMap;

use crate::{
    dtype::Dtype,
    refusal::{Flaw, Refusal, clip},
};

/// Index of a value in the arena.
pub(super) type Ref = u32;

/// The only names a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, Refusal> {
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            ("torch", class) => Dtype::from_storage(class).map(Self::Storage).ok_or(()),
            _ => Err(()),
        }
        .map_err(|()| forbidden(format!("the global {}.{}", clip(module), clip(name))))
    }
}

/// A tensor as the pickle describes it; nothing is checked against the archive yet.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) storage: Ref,
    pub(super) offset: i64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    /// None, a boolean or a float: allowed where nobody looks.
    Opaque,
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Ref>),
    List,
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage {
        dtype: Dtype,
        key: &'a str,
        elements: i64,
    },
    /// Boxed to keep the arena's values small: a stranger decides how many there are.
    Tensor(Box<Tensor>),
}

/// What a pickle describes: the arena and the root.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    pub(super) root: Ref,
}

impl<'a> Pickle<'a> {
    pub(super) fn value(&self, at: Ref) -> &Value<'a> {
        // References are only ever made by pushing a value.
        &self.values[at as usize]
    }

    /// Everything that the pickle made, used or not.
    pub(super) fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    pub(super) fn text(&self, at: Ref) -> Option<&'a str> {
        let Value::Str(text) = self.value(at) else { return None };
        Some(text)
    }
}

/// Reads a pickle of protocol 2, from its first byte to its STOP. Refused when it makes more than `max_values` values.
pub(super) fn read(bytes: &[u8], max_values: usize) -> Result<Pickle<'_>, Refusal> {
    let mut machine = Machine { rest: bytes, max_values, ..Machine::default() };
    let root = machine.run()?;
    Ok(Pickle { values: machine.values, root })
}

fn forbidden(what: String) -> Refusal {
    Refusal::ForbiddenPickle { what }
}

fn bad(detail: &str) -> Refusal {
    Flaw::BadPickle.with(detail)
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    max_values: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Ref>,
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Ref, Refusal> {
        if self.rest.first() != Some(&0x80) {
            return Err(bad("does not begin with its protocol"));
        }
        loop {
            if self.values.len() > self.max_values {
                return Err(Flaw::PickleTooLarge.with(format!("over {} values", self.max_values)));
            }
            let opcode = self.take(1)?[0];
            match opcode {
                0x80 => match self.number(1)? {
                    2 | 3 => {}
                    version => return Err(forbidden(format!("protocol {version}"))),
                },
                b'.' if self.rest.is_empty() => return self.pop(),
                b'.' => return Err(bad("bytes after its end")),
                b'N' | 0x88 | 0x89 => self.push(Value::Opaque),
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Opaque);
                }
                b'K' => self.push_int(1)?,
                b'M' => self.push_int(2)?,
                b'J' => {
                    let n = self.number(4)? as u32;
                    self.push(Value::Int(i64::from(n.cast_signed())));
                }
                0x8a => self.long()?,
                b'X' => self.unicode()?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(Global::find(module, name)?));
                }
                b'q' => self.put(1)?,
                b'r' => self.put(4)?,
                b'h' => self.get(1)?,
                b'j' => self.get(4)?,
                _ => self.structure(opcode)?,
            }
        }
    }

    /// The instructions that build values from values.
    fn structure(&mut self, opcode: u8) -> Result<(), Refusal> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let mut items = vec![0; usize::from(opcode - 0x84)];
                for item in items.iter_mut().rev() {
                    *item = self.pop()?;
                }
                self.push(Value::Tuple(items));
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            // A list is allowed as somebody's metadata, where its content does not matter.
            b'a' => drop(self.pop()?),
            b'e' => drop(self.pop_to_mark()?),
            // BUILD: a state dict carries `_metadata`; it is dropped.
            b'b' => drop(self.pop()?),
            b'R' => self.call()?,
            b'Q' => self.storage()?,
            _ => return Err(forbidden(format!("the instruction {opcode:#04x}"))),
        }
        if matches!(opcode, b'a' | b'e' | b'b') {
            self.check_target(opcode)?;
        }
        Ok(())
    }

    fn check_target(&self, opcode: u8) -> Result<(), Refusal> {
        let target = &self.values[self.top()? as usize];
        let fits = match opcode {
            b'b' => matches!(target, Value::Dict(_)),
            _ => matches!(target, Value::List),
        };
        if fits {
            Ok(())
        } else {
            Err(forbidden(format!("the instruction {opcode:#04x} on an object")))
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| bad("ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned little-endian number of `n` bytes, at most 8.
    fn number(&mut self, n: usize) -> Result<u64, Refusal> {
        Ok(self.take(n)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn push(&mut self, value: Value<'a>) {
        // At most one value per byte of a pickle that is far shorter than 4 GiB.
        self.stack.push(self.values.len() as Ref);
        self.values.push(value);
    }

    fn push_int(&mut self, bytes: usize) -> Result<(), Refusal> {
        let n = self.number(bytes)?;
        self.push(Value::Int(n.cast_signed()));
        Ok(())
    }

    fn long(&mut self) -> Result<(), Refusal> {
        let n = self.number(1)? as usize;
        if n > 8 {
            return Err(bad(&format!("an integer of {n} bytes")));
        }
        let bits = self.number(n)?;
        let unused = 64 - 8 * n as u32;
        let value = if n == 0 { 0 } else { (bits << unused).cast_signed() >> unused };
        self.push(Value::Int(value));
        Ok(())
    }

    fn unicode(&mut self) -> Result<(), Refusal> {
        let n = self.number(4)? as usize;
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| bad("text that is not UTF-8"))?;
        self.push(Value::Str(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, Refusal> {
        let end =
            self.rest.iter().position(|c| *c == b'\n').ok_or_else(|| bad("ends too early"))?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| bad("a name that is not UTF-8"))
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Ref, Refusal> {
        if self.stack.len() <= self.floor() {
            return Err(bad("an empty stack"));
        }
        self.stack.pop().ok_or_else(|| bad("an empty stack"))
    }

    fn top(&self) -> Result<Ref, Refusal> {
        let top = self.stack.get(self.floor()..).and_then(<[Ref]>::last);
        top.copied().ok_or_else(|| bad("an empty stack"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Ref>, Refusal> {
        let mark = self.marks.pop().ok_or_else(|| bad("no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, bytes: usize) -> Result<(), Refusal> {
        let (key, top) = (self.number(bytes)? as u32, self.top()?);
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, bytes: usize) -> Result<(), Refusal> {
        let key = self.number(bytes)? as u32;
        let value = self.memo.get(&key).ok_or_else(|| bad("an unknown memo"))?;
        self.stack.push(*value);
        Ok(())
    }

    fn set(&mut self, items: &[Ref]) -> Result<(), Refusal> {
        let target = self.top()? as usize;
        let (pairs, odd) = items.as_chunks();
        let Value::Dict(entries) = &mut self.values[target] else {
            return Err(bad("an item for what is not a dictionary"));
        };
        if !odd.is_empty() {
            return Err(bad("a key without its value"));
        }
        entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn tuple(&self, at: Ref) -> Result<&[Ref], Refusal> {
        let Value::Tuple(items) = &self.values[at as usize] else {
            return Err(bad("a tuple expected"));
        };
        Ok(items)
    }

    fn int(&self, at: Ref) -> Result<i64, Refusal> {
        let Value::Int(n) = self.values[at as usize] else {
            return Err(bad("an integer expected"));
        };
        Ok(n)
    }

    fn dimensions(&self, at: Ref) -> Result<Vec<usize>, Refusal> {
        let items = self.tuple(at)?;
        if items.len() > 8 {
            return Err(Flaw::TooManyDimensions.with(items.len()));
        }
        let size = |item: &Ref| {
            usize::try_from(self.int(*item)?).map_err(|_| bad("a negative dimension or stride"))
        };
        items.iter().map(size).collect()
    }

    /// REDUCE: one of three functions, none of which is called.
    fn call(&mut self) -> Result<(), Refusal> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = self.values[function as usize] else {
            return Err(forbidden("a call of what is not a function".to_owned()));
        };
        let args = self.tuple(args)?;
        let value = match (function, args) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (
                Global::RebuildTensor,
                [storage, offset, shape, strides, _, _]
                | [storage, offset, shape, strides, _, _, _],
            ) => Value::Tensor(Box::new(Tensor {
                storage: *storage,
                offset: self.int(*offset)?,
                shape: self.dimensions(*shape)?,
                strides: self.dimensions(*strides)?,
            })),
            (Global::RebuildParameter, [tensor, _, _]) => {
                let tensor = *tensor;
                self.stack.push(tensor);
                return Ok(());
            }
            (Global::Storage(_), _) => {
                return Err(forbidden("a call of a storage class".to_owned()));
            }
            (Global::OrderedDict | Global::RebuildTensor | Global::RebuildParameter, args) => {
                return Err(bad(&format!("{function:?} with {} arguments", args.len())));
            }
        };
        self.push(value);
        Ok(())
    }

    /// BINPERSID: `("storage", class, key, location, elements)`.
    fn storage(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let [kind, class, key, _location, elements] = *self.tuple(id)? else {
            return Err(bad("a storage is named by five things"));
        };
        match (
            &self.values[kind as usize],
            &self.values[class as usize],
            &self.values[key as usize],
        ) {
            (Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key)) => {
                let (dtype, key) = (*dtype, *key);
                let elements = self.int(elements)?;
                self.push(Value::Storage { dtype, key, elements });
                Ok(())
            }
            _ => Err(bad("not a storage")),
        }
    }
}
