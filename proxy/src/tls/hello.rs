//! The name in a ClientHello (SNI): what an encrypted connection that passes through is called in telemetry.
//!
//! In: the client's first bytes. Out: the name, none, or the wish for more bytes. Invariant: bytes from
//! strangers are values: what does not parse has no name, and the connection passes through all the same.
//! Surprise: the name never decides *where* the bytes go, only what they are called; the client chose the
//! address. Non-goal: terminating TLS.

use rustls::server::Acceptor;
use weft_wire::Host;

/// What a beginning of a TLS connection says about its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// It asks for this host.
    Named(Host),
    /// The ClientHello is not complete.
    NeedMore,
    /// It is complete or broken and names nobody.
    Unnamed,
}

/// Looks for the name in all bytes that the client has sent so far.
#[must_use]
pub fn peek(mut bytes: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.read_tls(&mut bytes) {
            Ok(0) => return Hello::NeedMore,
            Ok(_) => {}
            Err(_) => return Hello::Unnamed,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().and_then(|name| name.parse().ok());
                return name.map_or(Hello::Unnamed, Hello::Named);
            }
            Err(_) => return Hello::Unnamed,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A minimal TLS 1.2 ClientHello with or without a server name.
    fn client_hello(name: Option<&str>) -> Vec<u8> {
        fn sized(width: usize, content: &[u8]) -> Vec<u8> {
            let length = (content.len() as u32).to_be_bytes();
            [&length[4 - width..], content].concat()
        }
        let mut extensions = Vec::new();
        if let Some(name) = name {
            let entry = [&[0][..], &sized(2, name.as_bytes())].concat();
            extensions.extend([&[0, 0][..], &sized(2, &sized(2, &entry))].concat());
        }
        // signature_algorithms: ecdsa_secp256r1_sha256
        extensions.extend([&[0, 13][..], &sized(2, &sized(2, &[4, 3]))].concat());
        let body = [
            &[3, 3][..],
            &[7; 32],
            &sized(1, &[]),
            &sized(2, &[0xc0, 0x2b]),
            &sized(1, &[0]),
            &sized(2, &extensions),
        ]
        .concat();
        let handshake = [&[1][..], &sized(3, &body)].concat();
        [&[0x16, 3, 1][..], &sized(2, &handshake)].concat()
    }

    #[test]
    fn a_hello_names_its_host_lower_case() {
        let bytes = client_hello(Some("Api.Example.com"));
        assert_eq!(peek(&bytes), Hello::Named("api.example.com".parse().unwrap()));
        assert_eq!(peek(&client_hello(None)), Hello::Unnamed);
        assert_eq!(crate::detect::sniff(&bytes), crate::detect::Sniff::Tls);
    }

    #[test]
    fn a_hello_may_come_in_pieces() {
        let bytes = client_hello(Some("api.example.com"));
        for cut in 0..bytes.len() {
            assert_eq!(peek(&bytes[..cut]), Hello::NeedMore, "at {cut}");
        }
    }

    proptest! {
        #[test]
        fn a_broken_hello_never_panics(position in 0usize..80, value: u8, cut in 0usize..90) {
            let mut bytes = client_hello(Some("api.example.com"));
            let position = position % bytes.len();
            bytes[position] = value;
            bytes.truncate(cut);
            std::hint::black_box(peek(&bytes));
        }
    }
}
