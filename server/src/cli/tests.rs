//! What can be typed, and what is said where it is wrong.

use clap::{CommandFactory as _, Parser as _};

use super::{Cli, Verb};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_has_a_sentence_and_no_help_is_empty() {
    fn check(command: &clap::Command) {
        for verb in command.get_subcommands() {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "`{}` has no help", verb.get_name());
            check(verb);
        }
    }
    check(&Cli::command());
}

#[test]
fn usual_lines_are_understood() {
    for line in [
        "flotilla init home --data-dir /tmp/x",
        "flotilla up --init home --listen 127.0.0.1:0",
        "flotilla deploy -f compose.yaml --wait --timeout 90s",
        "flotilla deploy --dry-run --json",
        "flotilla ps --json",
        "flotilla --json --api http://x:1 ps notes",
        "flotilla logs notes -f --tail 10 --since 5m",
        "flotilla exec -it notes -- sh -c ls",
        "flotilla exec notes ls -la /",
        "flotilla rm a b --volumes --yes",
        "flotilla rollback notes --to 3",
        "flotilla scale notes=0 web=3",
        "flotilla image push notes:1",
        "flotilla secret",
        "flotilla secrets ls --json",
        "flotilla secret set db-password --file /tmp/x --no-update",
        "flotilla secret inspect db-password",
        "flotilla secret rm a b --yes",
        "flotilla secret rekey",
        "flotilla config set nginx.conf -f nginx.conf",
        "flotilla config cat nginx.conf --version 3",
        "flotilla token create ci --scope operator --expires 90d",
        "flotilla token create --scope machine",
        "flotilla token create attic --scope machine --expires 1h --quiet",
        "flotilla invite create ana --service notes",
        "flotilla events -f",
        "flotilla status",
        "flotilla state backup home.db",
        "flotilla state restore home.db --data-dir /tmp/x --force --recover-alone",
        "flotilla state recover --yes --json",
        "flotilla machines --json",
        "flotilla machine",
        "flotilla machine ls",
        "flotilla machines inspect atlas",
        "flotilla machine rename atlas boreas",
        "flotilla machine label atlas room=attic power-",
        "flotilla machine limit atlas 2MB/s",
        "flotilla machine limit atlas 500kB/s --between 07:00-23:00 --between 23:30-01:00 --json",
        "flotilla machine limit atlas 0 --between 18:00-22:00",
        "flotilla machine limit atlas off",
        "flotilla machine rm atlas --force --yes",
        "flotilla volume scrub --wait --timeout 1h",
        "flotilla volume scrub --machine atlas --json",
        "flotilla drain atlas --wait --timeout 90s",
        "flotilla machine drain atlas",
        "flotilla undrain atlas",
        "flotilla context save home",
        "flotilla completions zsh",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_is_after_the_dashes_is_the_command_alone() {
    let Verb::Exec(exec) = parse("flotilla exec -i notes -- grep -r --json x").unwrap().verb else { panic!("exec") };
    assert_eq!(exec.command, ["grep", "-r", "--json", "x"]);
    assert!(exec.interactive && !exec.tty);
}

#[test]
fn mistakes_are_told_with_the_way_out() {
    for (line, said) in [
        ("flotilla scale notes", "write it as SERVICE=N, for example notes=0"),
        ("flotilla scale notes=x", "`x` is no number of instances"),
        ("flotilla ps Notes", "`Notes` is no service name: use only the letters a to z in lower case"),
        ("flotilla ps app", "the name is reserved"),
        ("flotilla init my_home", "is no stack name: use only the letters a to z"),
        ("flotilla logs notes --since yesterday", "write how long ago, as 10m or 1h30m"),
        ("flotilla deploy --wait --dry-run", "cannot be used with"),
        ("flotilla rm", "required"),
        ("flotilla secret set", "required"),
        ("flotilla secret set db hunter2", "unexpected argument"),
        ("flotilla secret set -db", "unexpected argument"),
        ("flotilla secret cat db", "unrecognized subcommand"),
        ("flotilla machine label atlas room", "write it as KEY=VALUE"),
        ("flotilla machine label atlas =x", "write it as KEY=VALUE"),
        ("flotilla machine rename atlas Boreas", "is no machine name"),
        ("flotilla exec notes", "required"),
        ("flotilla deplo", "similar subcommands exist: 'demo', 'deploy'"),
        ("flotilla token create x --scope boss", "[possible values: user, operator, admin, machine]"),
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        let text = error.to_string();
        assert!(text.contains(said), "{line}: {text}");
    }
}
