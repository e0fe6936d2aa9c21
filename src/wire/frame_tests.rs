//! Frames cut at every place are seen as the same frames.

use super::*;
use proptest::prelude::*;

fn frame(tag: u8, body: usize) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body + 4).unwrap().to_be_bytes());
    frame.resize(body + 5, 0xFF);
    frame
}

#[test]
fn peek_checks_the_length() {
    assert_eq!(peek(b"D\0\0\0"), Ok(None));
    let header = Header { tag: b'S', len: 5 };
    assert_eq!(peek(b"S\0\0\0\x04"), Ok(Some(header)));
    let short = WireError::FrameLength {
        tag: b'S',
        length: 3,
    };
    assert_eq!(peek(b"S\0\0\0\x03"), Err(short));
    assert!(peek(b"S\x40\0\0\0").is_err());
    assert!(peek(b"S\xFF\xFF\xFF\xFF").is_err());
    assert!(peek_within(&frame(b'C', 20_000), 10_004).is_err());
    assert_eq!(whole(&frame(b'D', 9)[..13]), Ok(None));
}

#[test]
fn tag_sets_hold_what_they_were_given() {
    let set = TagSet::of(b"Zt\xFF\0");
    let others = TagSet::all_but(b"Zt\xFF\0");
    for tag in 0..=255 {
        assert_eq!(set.has(tag), b"Zt\xFF\0".contains(&tag));
        assert_ne!(set.has(tag), others.has(tag));
    }
}

#[test]
fn a_large_frame_passes_in_pieces() {
    let mut scanner = Scanner::new();
    let head = b"D\x30\0\0\0start";
    let header = Header {
        tag: b'D',
        len: 0x3000_0001,
    };
    assert_eq!(scanner.next(head), Ok(Step::Start { header, here: 10 }));
    assert_eq!(scanner.left(), 0x3000_0001 - 10);
    let piece = [0; 4096];
    assert_eq!(
        scanner.next(&piece),
        Ok(Step::More {
            here: 4096,
            done: false
        })
    );
    let run = scanner.run(&piece, &TagSet::of(b"D")).unwrap();
    assert_eq!(
        run,
        Run {
            passed: 4096,
            stop: Stop::End
        }
    );
}

#[test]
fn a_run_stops_before_what_must_be_seen() {
    let mut bytes = frame(b'D', 7);
    bytes.extend(frame(b'Z', 1));
    let header = Header { tag: b'Z', len: 6 };
    let run = Scanner::new().run(&bytes, &TagSet::of(b"Z")).unwrap();
    assert_eq!(
        run,
        Run {
            passed: 12,
            stop: Stop::Look(header)
        }
    );
    let run = Scanner::new().run(&bytes[..14], &TagSet::of(b"Z")).unwrap();
    assert_eq!(
        run,
        Run {
            passed: 12,
            stop: Stop::Starved
        }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cutting_gives_the_same_frames(
        frames in prop::collection::vec((any::<u8>(), 0usize..40), 1..20),
        reads in prop::collection::vec(1usize..30, 1..200),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(tag, body)| frame(*tag, *body)).collect();
        let (mut seen, mut scanner, mut start, mut end) = (vec![], Scanner::new(), 0, 0);
        let mut reads = reads.into_iter();
        while end < stream.len() {
            end = (end + reads.next().unwrap_or(64)).min(stream.len());
            while start < end {
                match scanner.next(&stream[start..end]).unwrap() {
                    Step::Start { header, here } => {
                        seen.push((header.tag, header.len - 5));
                        start += here;
                    }
                    Step::More { here, .. } => start += here,
                    Step::Starved => break,
                }
            }
        }
        prop_assert_eq!(seen, frames);
        prop_assert_eq!(scanner.left(), 0);
    }

    #[test]
    fn runs_and_steps_agree(
        frames in prop::collection::vec((0u8..4, 0usize..40), 1..20),
        reads in prop::collection::vec(1usize..30, 1..200),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|(tag, body)| frame(*tag, *body)).collect();
        let (mut looked, mut scanner, mut start, mut end) = (0, Scanner::new(), 0, 0);
        let mut reads = reads.into_iter();
        let look = TagSet::of(&[2]);
        while end < stream.len() {
            end = (end + reads.next().unwrap_or(64)).min(stream.len());
            loop {
                let run = scanner.run(&stream[start..end], &look).unwrap();
                start += run.passed;
                let Stop::Look(header) = run.stop else { break };
                if stream[start..end].len() < header.len {
                    break;
                }
                looked += 1;
                start += header.len;
            }
        }
        prop_assert_eq!(start, stream.len());
        prop_assert_eq!(looked, frames.iter().filter(|(tag, _)| *tag == 2).count());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = whole(&bytes);
        let mut scanner = Scanner::new();
        let _ = scanner.run(&bytes, &TagSet::of(b"D"));
        let _ = scanner.next(&bytes);
        let _ = scanner.run(&bytes, &TagSet::of(b""));
    }
}
