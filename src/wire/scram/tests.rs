//! Both sides against RFC 7677's example, against each other, and against nonsense.

use super::client::{Binding, Client, Secret};
use super::server::{Accepted, Server};
use super::verifier::{DEFAULT_ITERATIONS, Verifier, make_verifier};
use super::*;
use proptest::prelude::*;

const RFC_CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

fn rfc_verifier() -> Verifier {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    Verifier::of_password(b"pencil", &salt, 4096).unwrap()
}

fn cheap(password: &str) -> Verifier {
    Verifier::of_password(password.as_bytes(), b"0123456789abcdef", 3).unwrap()
}

fn password(text: &str) -> Secret {
    Secret::Password(text.as_bytes().to_vec())
}

/// Plays a whole exchange.
fn play(
    secret: Secret,
    binding: Binding,
    verifier: Verifier,
    offered: Option<&[u8]>,
) -> Result<Accepted, ScramError> {
    let mechanism = if matches!(binding, Binding::Done(_)) {
        MECHANISM_PLUS
    } else {
        MECHANISM
    };
    let (client, first) = Client::new(secret, binding, "clientnonce")?;
    let server = Server::new(verifier, offered.map(<[u8]>::to_vec));
    let (server, challenge) = server.first(mechanism, first.as_bytes(), "servernonce")?;
    let (client, proof) = client.answer(challenge.as_bytes())?;
    let accepted = server.last(proof.as_bytes())?;
    client.verify(accepted.server_final.as_bytes())?;
    Ok(accepted)
}

#[test]
fn the_example_of_rfc_7677() {
    let server = Server::new(rfc_verifier(), None);
    let (server, challenge) = server
        .first(MECHANISM, RFC_CLIENT_FIRST, RFC_SERVER_NONCE)
        .unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    assert_eq!(
        challenge,
        format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    );
    let accepted = server.last(RFC_CLIENT_FINAL.as_bytes()).unwrap();
    assert_eq!(
        accepted.server_final,
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    );
    assert!(rfc_verifier().accepts(&accepted.client_key));
}

#[test]
fn the_recovered_key_opens_the_next_door() {
    let verifier = cheap("pass word");
    let accepted = play(password("pass word"), Binding::None, verifier.clone(), None).unwrap();
    let secret = Secret::Key {
        client_key: accepted.client_key,
        verifier: verifier.clone(),
    };
    assert!(play(secret.clone(), Binding::None, verifier, None).is_ok());
    let salted_anew = Verifier::of_password(b"pass word", b"another salt", 3).unwrap();
    let refused = play(secret, Binding::None, salted_anew, None);
    assert_eq!(refused.err(), Some(ScramError::OtherVerifier));
}

#[test]
fn wrong_proofs_are_refused() {
    let wrong = play(password("wrong"), Binding::None, cheap("right"), None);
    assert_eq!(wrong.err(), Some(ScramError::BadProof));
    let verifier = cheap("right");
    let secret = Secret::Key {
        client_key: [7; 32],
        verifier: verifier.clone(),
    };
    let wrong = play(secret, Binding::None, verifier, None);
    assert_eq!(wrong.err(), Some(ScramError::BadProof));
}

#[test]
fn a_server_that_does_not_know_the_verifier_is_found_out() {
    let verifier = cheap("right");
    let mut other = verifier.clone();
    other.server_key = [1; 32];
    let found = play(password("right"), Binding::None, other, None);
    assert_eq!(found.err(), Some(ScramError::BadServerSignature));
}

#[test]
fn unknown_users_get_a_steady_mock_that_nothing_satisfies() {
    let mock = Verifier::mock(&[3; 32], "nobody", DEFAULT_ITERATIONS);
    assert_eq!(mock, Verifier::mock(&[3; 32], "nobody", DEFAULT_ITERATIONS));
    assert_ne!(mock.salt, Verifier::mock(&[3; 32], "somebody", 4096).salt);
    assert_ne!(mock.salt, Verifier::mock(&[4; 32], "nobody", 4096).salt);
    let mut satisfied = cheap("x");
    satisfied.doomed = true;
    let refused = play(password("x"), Binding::None, satisfied, None);
    assert_eq!(refused.err(), Some(ScramError::BadProof));
}

#[test]
fn channel_binding_is_held_to() {
    let play = |binding, offered| play(password("x"), binding, cheap("x"), offered).err();
    let mismatch = |error: Option<ScramError>| matches!(error, Some(ScramError::ChannelBinding(_)));
    assert_eq!(play(Binding::Done(b"hash".to_vec()), Some(b"hash")), None);
    assert!(mismatch(play(
        Binding::Done(b"hash".to_vec()),
        Some(b"other")
    )));
    assert_eq!(
        play(Binding::Done(b"hash".to_vec()), None),
        Some(ScramError::Mechanism)
    );
    assert_eq!(play(Binding::NotOffered, None), None);
    assert!(mismatch(play(Binding::NotOffered, Some(b"hash"))));
    assert_eq!(play(Binding::None, Some(b"hash")), None);
}

#[test]
fn flags_must_fit_the_mechanism() {
    let first = |mechanism, message: &str| {
        let server = Server::new(cheap("x"), Some(b"hash".to_vec()));
        server.first(mechanism, message.as_bytes(), "nonce").err()
    };
    for flag in ["n", "y", "p=tls-unique", "p=", "x", ""] {
        let message = format!("{flag},,n=,r=abc");
        assert!(first(MECHANISM_PLUS, &message).is_some(), "{flag}");
    }
    assert!(first(MECHANISM, "p=tls-server-end-point,,n=,r=abc").is_some());
    assert!(first(MECHANISM, "n,a=root,n=,r=abc").is_some());
    assert!(first(MECHANISM, "n,,m=ext,n=,r=abc").is_some());
    assert_eq!(first(MECHANISM, "n,,n=,r=abc,x=extension"), None);
    assert_eq!(
        first("SCRAM-SHA-1", "n,,n=,r=abc"),
        Some(ScramError::Mechanism)
    );
}

#[test]
fn nonces_and_counts_have_limits() {
    let first = |nonce: &str| {
        let message = format!("n,,n=,r={nonce}");
        Server::new(cheap("x"), None)
            .first(MECHANISM, message.as_bytes(), "s")
            .err()
    };
    assert_eq!(first(&"n".repeat(256)), None);
    assert_eq!(first(&"n".repeat(257)), Some(ScramError::Nonce));
    assert_eq!(first(""), Some(ScramError::Nonce));
    assert_eq!(first("a b"), Some(ScramError::Nonce));
    assert!(matches!(
        first(&"n".repeat(2000)),
        Some(ScramError::Malformed(_))
    ));
    for count in [
        "0",
        "10000001",
        "4294967297",
        "99999999999999999999",
        "-1",
        "+1",
        "",
        "x",
    ] {
        let client = Client::new(password("x"), Binding::None, "abc").unwrap().0;
        let challenge = format!("r=abcdef,s=AAAA,i={count}");
        assert_eq!(
            client.answer(challenge.as_bytes()).err(),
            Some(ScramError::Iterations),
            "{count}"
        );
        let verifier = rfc_verifier()
            .reveal()
            .replace("$4096:", &format!("${count}:"));
        assert_eq!(
            Verifier::parse(&verifier).err(),
            Some(ScramError::Iterations)
        );
    }
}

#[test]
fn a_server_must_extend_the_nonce() {
    for nonce in ["abc", "xbcdef", "ab"] {
        let client = Client::new(password("x"), Binding::None, "abc").unwrap().0;
        let challenge = format!("r={nonce},s=AAAA,i=1");
        assert_eq!(
            client.answer(challenge.as_bytes()).err(),
            Some(ScramError::Nonce)
        );
    }
}

#[test]
fn verifiers_read_what_they_write() {
    let text = make_verifier(b"pencil", b"0123456789abcdef", 4096).unwrap();
    assert_eq!(Verifier::parse(&text).unwrap().reveal(), text);
    for bad in [
        "",
        "md5abc",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$1:$:",
        "SCRAM-SHA-256$1:AAAA$AAAA:AAAA",
    ] {
        assert_eq!(
            Verifier::parse(bad).err(),
            Some(ScramError::BadVerifier),
            "{bad}"
        );
    }
    assert!(make_verifier(b"x", b"salt", 0).is_err());
    assert!(make_verifier(b"x", b"", 1).is_err());
}

#[test]
fn a_real_verifier_is_that_of_its_password() {
    // PostgreSQL 16.14: CREATE ROLE ... PASSWORD 'pencil'.
    let text = "SCRAM-SHA-256$4096:SYhitwfyWkGFXq8/qSlq4g==$\
                D2y+cwinZ2DDp0MOfVX0M2Rg3X0FBYIkomk/yR0Xp/g=:\
                9sWRZYJpzDmgJzygrloXhxYVMCgKy7/18PSy5rJRUHs=";
    let salt = STANDARD.decode("SYhitwfyWkGFXq8/qSlq4g==").unwrap();
    assert_eq!(make_verifier(b"pencil", &salt, 4096).unwrap(), text);
}

#[test]
fn passwords_are_prepared_where_possible() {
    // U+00AA and 'a' are one by SASLprep; bytes that are no UTF-8 stay.
    let salt = b"0123456789abcdef";
    let made = |password: &[u8]| make_verifier(password, salt, 2).unwrap();
    assert_eq!(made("\u{AA}".as_bytes()), made(b"a"));
    assert_ne!(made(b"\xFF"), made(b"\xFE"));
}

#[test]
fn md5_is_answered() {
    let answer = md5_response("md5_user", b"password", [0x2a, 0x3d, 0x8f, 0xe0]);
    assert_eq!(answer, "md562af4dd09bbb41884907a838a3233294");
}

#[test]
fn secrets_are_not_printed() {
    let secret = Secret::Key {
        client_key: [65; 32],
        verifier: rfc_verifier(),
    };
    let (client, _) = Client::new(secret, Binding::None, "abc").unwrap();
    assert!(!format!("{client:?}").contains("65"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_password_is_accepted_by_its_verifier(text in prop::collection::vec(any::<u8>(), 0..40)) {
        let verifier = Verifier::of_password(&text, b"salt", 2).unwrap();
        let text = Secret::Password(text);
        prop_assert!(play(text, Binding::None, verifier, None).is_ok());
    }

    #[test]
    fn arbitrary_messages_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        text in "[nyp=,cravsi,0-9:$AB]{0,40}",
    ) {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = Server::new(cheap("x"), None).first(MECHANISM, bytes, "nonce");
            let server = Server::new(cheap("x"), Some(vec![1]));
            let (server, _) = server.first(MECHANISM, RFC_CLIENT_FIRST, "nonce").unwrap();
            prop_assert!(server.last(bytes).is_err());
            let client = || Client::new(password("x"), Binding::None, "abc").unwrap().0;
            prop_assert!(client().answer(bytes).is_err());
            let (client, _) = client().answer(b"r=abcdef,s=AAAA,i=1").unwrap();
            prop_assert!(client.verify(bytes).is_err());
        }
        let _ = Verifier::parse(&text);
        let _ = Verifier::parse(&format!("SCRAM-SHA-256${text}"));
    }
}
