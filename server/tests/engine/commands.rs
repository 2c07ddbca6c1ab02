//! Logs, commands in containers, and figures.

use std::time::Duration;

use flotilla::engine::{Engine, Exec, ExecEvent};
use flotilla_api::rest::{ExecRequest, LogLine, LogQuery, LogStream};
use flotilla_core::CommandV1;
use futures::{StreamExt, stream::BoxStream};

use crate::playground::{PATIENCE, Playground, name};

type Lines = BoxStream<'static, Result<LogLine, flotilla::engine::Error>>;

async fn texts(lines: &mut Lines, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap_or_else(|_| panic!("only {texts:?}"));
        match line {
            Some(line) => texts.push(line.unwrap().text),
            None => break,
        }
    }
    texts
}

#[tokio::test]
async fn logs_tell_stream_time_and_the_last_lines() {
    let playground = Playground::new().await;
    playground.deploy(
        "  talk: { image: $IMAGE, command: [sh, -c, \"echo one; echo two; echo three >&2; exec sleep 1000\"] }",
    );
    let engine = playground.start();
    playground.until_running(&engine, "talk").await;
    let talk = name("talk");

    let mut lines = engine.logs(&talk, None, LogQuery { follow: true, ..Default::default() }).await.unwrap();
    let mut seen = texts(&mut lines, 3).await;
    seen.sort();
    assert_eq!(seen, ["one", "three", "two"]);

    let all: Vec<_> = engine.logs(&talk, None, LogQuery::default()).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted_by_key(|line| line.at));
    let three = all.iter().find(|line| line.text == "three").unwrap();
    assert_eq!(three.stream, LogStream::Err);
    assert!(three.at.0 > 1_700_000_000_000);

    let query = LogQuery { tail: Some(1), ..Default::default() };
    let tail: Vec<_> = engine.logs(&talk, Some(&three.instance), query).await.unwrap().collect().await;
    assert_eq!(tail.len(), 1);
    assert!(engine.logs(&name("nobody"), None, LogQuery::default()).await.is_err());
}

#[tokio::test]
async fn following_logs_goes_on_with_the_next_instance() {
    let playground = Playground::new().await;
    playground.deploy("  talk: { image: $IMAGE, init: true, stop_grace_period: 1s, command: [sh, -c, \"echo hello; exec sleep 1000\"] }");
    let engine = playground.start();
    let first = playground.until_running(&engine, "talk").await;
    let query = LogQuery { follow: true, ..Default::default() };
    let mut lines = engine.logs(&name("talk"), None, query).await.unwrap();
    assert_eq!(texts(&mut lines, 1).await, ["hello"]);
    // The same container, started again.
    playground.docker.kill_container(&first.id, None).await.unwrap();
    assert_eq!(texts(&mut lines, 1).await, ["hello"]);
    // Another container.
    playground.apply(CommandV1::Restart { service: name("talk") });
    let line = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(line.text, "hello");
    assert_ne!(line.instance, first.instance);
}

#[tokio::test]
async fn a_reader_that_stops_reading_costs_no_memory_and_loses_nothing() {
    let playground = Playground::new().await;
    playground.deploy("  talk: { image: $IMAGE, restart: \"no\", command: [sh, -c, \"for n in $$(busybox seq 5000); do echo $$n; done\"] }");
    let engine = playground.start();
    playground.until(&engine, "talk", |condition| condition.instances.iter().any(|i| i.exit_code == Some(0))).await;
    let mut lines = engine.logs(&name("talk"), None, LogQuery::default()).await.unwrap();
    let seen = texts(&mut lines, 6000).await;
    let expected: Vec<String> = (1..=5000).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
}

fn request(command: &[&str], tty: bool) -> ExecRequest {
    ExecRequest { command: command.iter().map(|&part| part.to_owned()).collect(), tty, rows: 33, columns: 111 }
}

async fn run(engine: &Engine, command: &[&str], tty: bool) -> Exec {
    engine.exec(&name("box"), None, &request(command, tty)).await.unwrap()
}

/// Output, error output and exit code.
async fn outcome(exec: &mut Exec) -> (String, String, Option<i64>) {
    let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), None);
    while let Some(event) = tokio::time::timeout(PATIENCE, exec.output.next()).await.unwrap() {
        match event.unwrap() {
            ExecEvent::Out(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Err(bytes) => err.extend_from_slice(&bytes),
            ExecEvent::Exit(exit) => code = Some(exit),
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), code)
}

#[tokio::test]
async fn commands_run_in_a_container() {
    let playground = Playground::new().await;
    playground.deploy("  box: { image: $IMAGE }");
    let engine = playground.start();
    playground.until_running(&engine, "box").await;

    let mut plain = run(&engine, &["sh", "-c", "echo out; echo err >&2; exit 3"], false).await;
    assert_eq!(outcome(&mut plain).await, ("out\n".into(), "err\n".into(), Some(3)));

    let mut cat = run(&engine, &["cat"], false).await;
    let big = "0123456789abcdef".repeat(8192);
    let Exec { input, output } = &mut cat;
    let (written, echoed) = tokio::join!(
        async {
            input.write(big.as_bytes()).await.unwrap();
            input.close().await;
        },
        async {
            let mut echoed = Vec::new();
            loop {
                match output.next().await.unwrap().unwrap() {
                    ExecEvent::Out(bytes) => echoed.extend_from_slice(&bytes),
                    ExecEvent::Err(bytes) => panic!("{bytes:?}"),
                    ExecEvent::Exit(code) => return (echoed, code),
                }
            }
        }
    );
    assert_eq!(written, ());
    assert_eq!(echoed, (big.into_bytes(), 0));

    let mut terminal = run(&engine, &["sh", "-c", "tty; stty size; printf '\\000\\000\\000\\000\\377'"], true).await;
    let mut seen = Vec::new();
    while let Some(event) = terminal.output.next().await {
        match event.unwrap() {
            ExecEvent::Out(bytes) => seen.extend_from_slice(&bytes),
            ExecEvent::Err(_) => panic!("a terminal has one stream"),
            ExecEvent::Exit(code) => assert_eq!(code, 0),
        }
    }
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("/dev/pts/"), "{text}");
    assert!(seen.ends_with(&[0, 0, 0, 0, 255]), "{seen:?}");

    let mut missing = run(&engine, &["no-such-program"], false).await;
    let (_, _, code) = outcome(&mut missing).await;
    assert!(matches!(code, Some(126 | 127)), "{code:?}");
    assert!(engine.exec(&name("box"), None, &request(&[], false)).await.is_err());
    assert!(engine.exec(&name("nobody"), None, &request(&["true"], false)).await.is_err());
}

#[tokio::test]
async fn a_terminal_can_be_resized() {
    let playground = Playground::new().await;
    playground.deploy("  box: { image: $IMAGE }");
    let engine = playground.start();
    playground.until_running(&engine, "box").await;
    let mut shell = run(&engine, &["sh"], true).await;
    shell.input.resize(40, 100).await.unwrap();
    shell.input.write(b"stty size; exit 5\n").await.unwrap();
    let (out, _, code) = outcome(&mut shell).await;
    assert!(out.contains("40 100"), "{out}");
    assert_eq!(code, Some(5));
}

#[tokio::test]
async fn a_command_ends_when_its_client_leaves() {
    let playground = Playground::new().await;
    playground.deploy("  box: { image: $IMAGE, init: true }");
    let engine = playground.start();
    let container = playground.until_running(&engine, "box").await;
    for tty in [false, true] {
        let exec = run(&engine, &["sh", "-c", "trap '' HUP; while true; do sleep 1; done"], tty).await;
        drop(exec);
    }
    let gone = async {
        loop {
            let top = playground.docker.top_processes(&container.id, None).await.unwrap();
            if top.processes.unwrap().iter().all(|process| !process.concat().contains("trap")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the command ran on");
}

#[tokio::test]
async fn usage_is_told_for_what_runs() {
    let playground = Playground::new().await;
    playground.deploy("  busy: { image: $IMAGE, command: [sh, -c, \"while true; do true; done\"], cpus: 0.3 }\n  idle: { image: $IMAGE }");
    let engine = playground.start();
    let busy = playground.until_running(&engine, "busy").await;
    let idle = playground.until_running(&engine, "idle").await;
    let usage = engine.usage().await;
    let (busy, idle) = (usage[&busy.instance], usage[&idle.instance]);
    assert!(busy.cpu_cores.unwrap() > 0.02, "{busy:?}");
    assert!(idle.cpu_cores.unwrap() < 0.1, "{idle:?}");
    assert!(idle.memory_bytes.unwrap() > 0, "{idle:?}");
}
