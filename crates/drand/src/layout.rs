//! The bytes of a sealed message as the chain stores them: a point of G2, then four strings, each
//! after its length as 8 bytes, least first. The third of them, the body, is two such strings.

/// Takes `N` bytes.
pub(crate) fn array<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    take(input, N)?.try_into().ok()
}

/// Takes a string after its length.
pub(crate) fn string<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u64::from_le_bytes(array(input)?);
    take(input, usize::try_from(length).ok()?)
}

/// Appends a string after its length.
pub(crate) fn put(output: &mut Vec<u8>, string: &[u8]) {
    output.extend((string.len() as u64).to_le_bytes());
    output.extend(string);
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}
