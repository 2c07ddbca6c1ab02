//! What a compose file may say, and what is said of one that is wrong.

use super::*;
use flotilla_api::spec::{
    Attribute, Given, HealthCheck, OnFailure, OnLoss, PlacementRules, Resources, Restart, UpdateOrder, UpdateRules,
    ValueKind, ValueUse, VolumeHooks, VolumeMount, VolumeRules,
};

#[test]
fn a_whole_file_is_read() {
    let text = r#"
name: shop
version: "3.9"
x-common: &common
  restart: on-failure:5
  environment: &env
    LOG: info
    VERSION: 1.10
services:
  web:
    <<: *common
    image: nginx:${TAG}
    command: nginx -g "daemon off;"
    environment:
      <<: *env
      LOG: debug
      HOST_ONLY:
      NOT_SET:
      PRICE: $$5
    ports: ["8080:80", "443:443"]
    volumes:
      - data:/srv/www:ro
      - type: volume
        source: cache
        target: /var/cache
      - type: tmpfs
        target: /run
        tmpfs: {size: 64m}
    tmpfs: /tmp
    deploy:
      replicas: 1
      resources:
        limits: {cpus: "1.5", memory: 512M}
    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost/"]
      interval: 1m30s
      retries: 5
    depends_on:
      db: {condition: service_healthy}
    cap_add: [CAP_NET_ADMIN]
    cap_drop: [all]
    init: true
    read_only: true
    stop_grace_period: 1m
    stop_signal: SIGINT
    user: "1000:1000"
    working_dir: /srv
    hostname: web
    labels: [team=blue]
    networks: [default]
    expose: [9000]
  db:
    build: {context: ./db, args: [A=1, HOST_ONLY]}
    entrypoint: [postgres]
    scale: 1
volumes:
  data:
  cache: {}
"#;
    let composition = compose(text).unwrap();
    assert_eq!(composition.stack.as_str(), "shop");
    let [web, db] = &composition.services[..] else { panic!("{composition:?}") };
    assert_eq!(web.image, "nginx:1.27");
    assert_eq!(web.command.as_deref().unwrap(), ["nginx", "-g", "daemon off;"]);
    let environment: Vec<(&str, &str)> = web.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        environment,
        [("HOST_ONLY", "from outside"), ("LOG", "debug"), ("PRICE", "$5"), ("VERSION", "1.10")],
        "a merged map gives what the own one lacks, and a version stays as written"
    );
    assert_eq!(web.port, Some(80));
    let mount = |volume: &str, target: &str, read_only| VolumeMount {
        volume: volume.parse().unwrap(),
        target: target.to_owned(),
        read_only,
        rules: VolumeRules::default(),
    };
    assert_eq!(web.volumes, [mount("data", "/srv/www", true), mount("cache", "/var/cache", false)]);
    assert_eq!(web.tmpfs, ["/tmp", "/run:size=67108864"]);
    assert_eq!(web.resources, Resources { cpu_millis: Some(1500), memory_bytes: Some(512 << 20) });
    assert_eq!(
        web.health,
        Some(HealthCheck {
            test: ["CMD", "curl", "-f", "http://localhost/"].map(str::to_owned).to_vec(),
            interval_ms: 90_000,
            timeout_ms: 30_000,
            start_period_ms: 0,
            retries: 5,
        })
    );
    assert_eq!(web.restart, Restart::OnFailure { max: Some(5) });
    assert!(web.depends_on.contains(&db.name));
    assert!(web.cap_add.contains("NET_ADMIN") && web.cap_drop.contains("ALL"));
    assert!(web.init && web.read_only);
    assert_eq!(web.stop_grace_ms, 60_000);
    assert_eq!(web.labels["team"], "blue");
    assert_eq!(db.image, "flotilla/shop-db:latest");
    assert_eq!(
        composition.builds,
        [Build {
            service: db.name.clone(),
            image: db.image.clone(),
            context: "./db".to_owned(),
            dockerfile: None,
            args: BTreeMap::from([
                ("A".to_owned(), "1".to_owned()),
                ("HOST_ONLY".to_owned(), "from outside".to_owned())
            ]),
            target: None,
        }]
    );
}

#[test]
fn what_is_not_said_has_a_default() {
    let spec = one("");
    assert_eq!(spec.stack.as_str(), "my-project", "the directory's name becomes a label");
    assert_eq!(spec.restart, Restart::Always);
    assert_eq!((spec.replicas, spec.port, spec.stop_grace_ms), (1, None, 10_000));
    assert_eq!(one("    command: []\n").command, Some(Vec::new()));
    assert_eq!(one("    command:\n").command, None);
}

#[test]
fn the_first_tcp_port_is_the_page_unless_said_otherwise() {
    assert_eq!(one("    ports: [\"53:53/udp\", 9000-9005, 80]\n").port, Some(9000));
    assert_eq!(one("    ports:\n      - target: 8080\n        published: \"80\"\n      - 81\n").port, Some(8080));
    assert_eq!(one("    ports: [80]\n    x-flotilla: {port: 81}\n").port, Some(81));
    assert_eq!(one("    expose: [80]\n").port, None);
}

#[test]
fn replicas_and_limits_may_stand_at_two_places_if_they_agree() {
    assert_eq!(one("    scale: 3\n    deploy: {replicas: 3}\n").replicas, 3);
    assert_eq!(one("    scale: ${N:-0}\n").replicas, 0, "a variable may be a number");
    assert_eq!(one("    cpus: 0.5\n").resources.cpu_millis, Some(500));
    assert!(refused("    scale: 3\n    deploy: {replicas: 2}\n").message.contains("services.web.deploy.replicas"));
    assert_eq!(refused("    scale: -1\n").line, Some(4));
}

#[test]
fn health_checks_come_in_all_forms() {
    let test = |keys: &str| one(&format!("    healthcheck: {keys}\n")).health.unwrap().test;
    assert_eq!(test("{test: curl localhost}"), ["CMD-SHELL", "curl localhost"]);
    assert_eq!(test("{test: [NONE]}"), ["NONE"]);
    assert_eq!(test("{disable: true}"), ["NONE"]);
    for bad in
        ["{interval: 5s}", "{test: []}", "{test: [curl]}", "{test: x, interval: 5}", "{test: x, retries: 0}", "x"]
    {
        assert_eq!(refused(&format!("    healthcheck: {bad}\n")).line, Some(4), "{bad}");
    }
}

#[test]
fn variables_are_put_in() {
    let image = |text: &str| {
        compose(&format!("services:\n  web:\n    image: {text}\n"))
            .map(|composition| composition.services[0].image.clone())
    };
    for (text, expected) in [
        ("a:${TAG}", "a:1.27"),
        ("a:$TAG-x", "a:1.27-x"),
        ("a:${NONE:-b}", "a:b"),
        ("a:${EMPTY:-b}", "a:b"),
        ("a${EMPTY-b}", "a"),
        ("a:${NONE:-${TAG}}", "a:1.27"),
        ("a:${NONE-${NONE:-x}}", "a:x"),
        ("a:${TAG:-${NONE}}", "a:1.27"),
        ("a:${TAG:?must}", "a:1.27"),
        ("a${TAG:+-tagged}", "a-tagged"),
        ("a${NONE:+-tagged}", "a"),
        ("a$$b", "a$b"),
    ] {
        assert_eq!(image(text).as_deref(), Ok(expected), "{text}");
    }
    for (text, says) in [
        ("a:${NONE}", "`NONE` is not set"),
        ("a:$NONE", "`NONE` is not set"),
        ("a:${EMPTY:?give a tag}", "`EMPTY` is not set: give a tag"),
        ("a:${TAG", "goes on as nothing"),
        ("a:${TAG:-x", "never closed"),
        ("a:${}", "a name of letters"),
        ("a:$ b", "stands alone"),
        ("a:${TAG!x}", "goes on as nothing"),
    ] {
        let error = image(text).unwrap_err();
        assert!(error.message.contains(says), "{text}: {error}");
        assert_eq!((error.code, error.line), (ErrorCode::ComposeInvalid, Some(3)));
    }
}

#[test]
fn an_unsupported_key_is_named_with_its_line() {
    refused_at(
        "services:\n  web:\n    image: a\n    privileged: true\n",
        ErrorCode::ComposeUnsupported,
        4,
        5,
        "`services.web.privileged` is not supported",
    );
    refused_at(
        "services:\n  web:\n    image: a\n    deploy:\n      resources:\n        reservations:\n          devices: []\n",
        ErrorCode::ComposeUnsupported,
        7,
        11,
        "`services.web.deploy.resources.reservations.devices`",
    );
    refused_at(
        "services:\n  web:\n    image: a\n    enviroment: {}\n",
        ErrorCode::ComposeUnsupported,
        4,
        5,
        "did you mean `environment`?",
    );
    refused_at("service: {}\n", ErrorCode::ComposeUnsupported, 1, 1, "did you mean `services`?");
    refused_at(
        "services:\n  web:\n    image: a\n    ports:\n      - {target: 1, foo: 2}\n",
        ErrorCode::ComposeUnsupported,
        5,
        21,
        "`services.web.ports[0].foo`",
    );
    refused_at(
        "services: {web: {image: a}}\nnetworks: {other: {}}\n",
        ErrorCode::ComposeUnsupported,
        2,
        12,
        "one private network",
    );
    refused_at(
        "services: {web: {image: a}}\nnetworks:\n  default:\n    driver: overlay\n",
        ErrorCode::ComposeUnsupported,
        4,
        5,
        "`networks.default.driver`",
    );
    refused_at(
        "services: {web: {image: a}}\nvolumes:\n  data:\n    external: true\n",
        ErrorCode::ComposeUnsupported,
        4,
        5,
        "`volumes.data.external`",
    );
}

#[test]
fn a_service_says_what_it_needs_and_where_it_may_run() {
    let spec = one("    mem_limit: 1g
    deploy:
      replicas: 4
      resources:
        reservations: {cpus: '0.5', memory: 256m}
      placement:
        constraints:
          - node.labels.zone==attic
          - node.hostname != atlas
          - node.id != 0123
        preferences:
          - spread: node.labels.rack
          - {spread: node.hostname}
        max_replicas_per_node: 2
      update_config:
        order: stop-first
        parallelism: 2
        delay: 5s
        monitor: 1m
        failure_action: pause
");
    assert_eq!(spec.reservations, Resources { cpu_millis: Some(500), memory_bytes: Some(256 << 20) });
    let constraints: Vec<String> = spec.placement.constraints.iter().map(ToString::to_string).collect();
    assert_eq!(constraints, ["node.labels.zone == attic", "node.hostname != atlas", "node.id != 0123"]);
    assert_eq!(spec.placement.spread, [Attribute::Label("rack".to_owned()), Attribute::Hostname]);
    assert_eq!(spec.placement.max_per_machine, Some(2));
    let update = UpdateRules {
        order: UpdateOrder::StopFirst,
        parallelism: 2,
        delay_ms: 5_000,
        monitor_ms: Some(60_000),
        on_failure: OnFailure::Pause,
    };
    assert_eq!(spec.update, update);

    let spec = one("    deploy: {placement: {}, update_config: {failure_action: rollback, order: start-first}}\n");
    assert_eq!((spec.placement, spec.update), (PlacementRules::default(), UpdateRules::default()));
}

#[test]
fn a_volume_says_who_shall_have_copies_and_what_happens_without() {
    let text = "services: {web: {image: a, volumes: ['a:/a', 'b:/b', 'c:/c']}}\nvolumes:\n  a:\n  b: {x-flotilla: {on-loss: \
                start-empty}}\n  c: {x-flotilla: {on-loss: wait, replicas: 0, sync: true, encrypted: true, hooks: {pre: \"save 'all of it'\", post: [go, \"on\"]}}, x-other: 1}\n";
    let spec = compose(text).unwrap().services.remove(0);
    let rules: Vec<VolumeRules> = spec.volumes.iter().map(|mount| mount.rules.clone()).collect();
    let usual = VolumeRules { on_loss: OnLoss::Wait, replicas: 2, sync: false, ..VolumeRules::default() };
    let empty = VolumeRules { on_loss: OnLoss::StartEmpty, ..usual.clone() };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let hooks = VolumeHooks { pre: words(&["save", "all of it"]), post: words(&["go", "on"]) };
    assert_eq!(rules, [usual.clone(), empty, VolumeRules { replicas: 0, sync: true, encrypted: true, hooks, ..usual }]);
    assert_eq!(spec.copies(), 2, "the most that one of them asks for");
    assert!(spec.needs_key() && spec.encrypts(&"c".parse().unwrap()) && !spec.encrypts(&"a".parse().unwrap()));
    for (entry, code) in [
        ("{x-flotilla: {on-loss: forget}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {replicas: 10}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {replicas: -1}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {replicas: all}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {sync: often}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {encrypted: aes}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {hooks: {before: [a]}}}", ErrorCode::ComposeUnsupported),
        ("{x-flotilla: {hooks: [a]}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {hooks: {pre: \"a 'b\"}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {last: 0}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {last: 201}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {hourly: 169}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {daily: 367}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {weekly: 261}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {daily: -1}}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: all}}", ErrorCode::ComposeInvalid),
        ("{x-flotilla: {history: {monthly: 3}}}", ErrorCode::ComposeUnsupported),
        ("{x-flotilla: {onloss: wait}}", ErrorCode::ComposeUnsupported),
        ("{x-flotilla: 5}", ErrorCode::ComposeInvalid),
    ] {
        let text = format!("services: {{web: {{image: a}}}}\nvolumes:\n  a: {entry}\n");
        let error = compose(&text).unwrap_err();
        assert_eq!((error.code, error.line), (code, Some(3)), "{error:?}");
    }
}

#[test]
fn a_rule_that_makes_no_sense_is_refused_at_its_line() {
    use ErrorCode::{ComposeInvalid as Invalid, ComposeUnsupported as Unsupported};
    for (keys, line, code) in [
        ("    deploy:\n      placement:\n        constraints:\n          - node.role == manager\n", 7, Unsupported),
        ("    deploy:\n      placement:\n        constraints:\n          - node.labels.zone\n", 7, Invalid),
        ("    deploy:\n      placement:\n        constraints:\n          - node.labels.zone == a b\n", 7, Invalid),
        ("    deploy:\n      placement:\n        constraints:\n          - node.labels. == a\n", 7, Unsupported),
        ("    deploy:\n      placement:\n        constraints: node.id == a\n", 6, Invalid),
        ("    deploy:\n      placement:\n        preferences: [{spread: rack}]\n", 6, Unsupported),
        ("    deploy:\n      placement:\n        preferences: [{}]\n", 6, Invalid),
        ("    deploy:\n      placement:\n        max_replicas_per_node: 0\n", 6, Invalid),
        ("    deploy:\n      placement: []\n", 5, Invalid),
        ("    deploy:\n      resources: {reservations: {memory: lots}}\n", 5, Invalid),
        ("    deploy:\n      resources: {limits: {memory: 64m}, reservations: {memory: 65m}}\n", 5, Invalid),
        ("    deploy:\n      resources: {limits: {cpus: 1}, reservations: {cpus: 1.1}}\n", 5, Invalid),
        ("    deploy:\n      update_config: {order: any}\n", 5, Invalid),
        ("    deploy:\n      update_config: {failure_action: continue}\n", 5, Unsupported),
        ("    deploy:\n      update_config: {parallelism: -1}\n", 5, Invalid),
        ("    deploy:\n      update_config: {delay: 2h}\n", 5, Invalid),
        ("    deploy:\n      update_config: {max_failure_ratio: 0.5}\n", 5, Unsupported),
        ("    volumes: [data:/d]\n    deploy:\n      update_config: {order: start-first}\n", 6, Invalid),
    ] {
        let error = refused(keys);
        assert_eq!((error.code, error.line), (code, Some(line)), "{keys}{error:?}");
    }
}

#[test]
fn extensions_are_left_alone() {
    let text = "x-any: {a: $, b: '${'}\nservices:\n  web:\n    image: a\n    x-other: {privileged: true}\n";
    assert_eq!(compose(text).unwrap().services.len(), 1);
    let text = "services:\n  x-web:\n    image: a\n";
    assert_eq!(compose(text).unwrap().services[0].name.as_str(), "x-web", "a service may be called so");
}

#[test]
fn a_bad_name_is_refused_at_its_line() {
    refused_at("services:\n  My_App:\n    image: a\n", ErrorCode::InvalidName, 2, 3, "My_App");
    refused_at("services:\n  app:\n    image: a\n", ErrorCode::InvalidName, 2, 3, "reserved");
    refused_at("name: A\nservices:\n  web:\n    image: a\n", ErrorCode::InvalidName, 1, 7, "stack name");
}

#[test]
fn a_wrong_type_is_refused_at_its_line() {
    for (keys, line) in [
        ("    environment: 5\n", 4),
        ("    environment: [[a]]\n", 4),
        ("    ports: 80\n", 4),
        ("    ports:\n      - 80\n      - [81]\n", 6),
        ("    ports:\n      - 80\n      - http\n", 6),
        ("    ports:\n      - target: many\n", 5),
        ("    ports:\n      - target: 70000\n", 5),
        ("    init: maybe\n", 4),
        ("    command: 'unclosed \" quote'\n", 4),
        ("    deploy:\n      replicas: lots\n", 5),
        ("    deploy: [1]\n", 4),
        ("    mem_limit: 1k\n", 4),
        ("    cpus: -1\n", 4),
        ("    user: [1]\n", 4),
        ("    working_dir: srv\n", 4),
        ("    hostname: a_b\n", 4),
        ("    labels: {flotilla.service: x}\n", 4),
        ("    stop_grace_period: 2h\n", 4),
        ("    x-flotilla: {port: 0}\n", 4),
        ("    restart: sometimes\n", 4),
        ("    volumes:\n      - data:relative\n", 5),
        ("    volumes:\n      - data:/a:ro:b\n", 5),
        ("    volumes:\n      - data:/a\n      - data:/a\n", 6),
        ("    volumes:\n      - missing:/a\n", 5),
        ("    volumes: [data:/a]\n    scale: 2\n", 3),
        ("    cap_add: ALL\n", 4),
        ("    cap_add: [SYS_ADMIN]\n", 4),
        ("    cap_add: [NET_ADMIN, cap_all]\n", 4),
        ("    depends_on: [web2]\n", 4),
        ("    depends_on: [web]\n", 4),
    ] {
        let error = refused(keys);
        assert_eq!((error.code, error.line), (ErrorCode::ComposeInvalid, Some(line)), "{keys}{error:?}");
        assert!(error.message.contains('`'), "names no key: {error}");
    }
    for text in
        ["", "# nothing\n", "- a\n", "5\n", "services:\n", "services: {}\n", "services: []\n", "services: {web: }\n"]
    {
        let error = compose(text).expect_err(text);
        assert_eq!(error.code, ErrorCode::ComposeInvalid, "{text:?}");
        assert!(error.line.is_some(), "{text:?}");
    }
}

#[test]
fn what_another_machine_lacks_is_refused() {
    for keys in [
        "    volumes:\n      - ./data:/a\n",
        "    volumes:\n      - /srv:/a\n",
        "    volumes:\n      - ~/x:/a\n",
        "    volumes:\n      - /anonymous\n",
        "    volumes:\n      - {type: bind, source: /srv, target: /a}\n",
        "    volumes:\n      - {type: volume, target: /a}\n",
        "    volumes:\n      - {type: npipe, source: x, target: /a}\n",
    ] {
        let error = refused(keys);
        assert_eq!((error.code, error.line), (ErrorCode::ComposeUnsupported, Some(5)), "{keys}{error:?}");
    }
}

#[test]
fn a_volume_belongs_to_one_service() {
    refused_at(
        "services:\n  a: {image: a, volumes: [data:/a]}\n  b:\n    image: b\n    volumes:\n      - data:/b\nvolumes:\n  data:\n",
        ErrorCode::ComposeUnsupported,
        6,
        9,
        "belongs to one service",
    );
}

#[test]
fn services_that_wait_for_each_other_are_refused() {
    refused_at(
        "services:\n  a:\n    image: a\n    depends_on: [b]\n  b:\n    image: b\n    depends_on:\n      - a\n",
        ErrorCode::ComposeInvalid,
        4,
        17,
        "wait for each other",
    );
}

#[test]
fn broken_yaml_is_refused_at_its_line() {
    refused_at("services:\n  web:\n    image: 'a\n", ErrorCode::ComposeInvalid, 3, 12, "no valid YAML");
    refused_at("services:\n  web:\n  web:\n", ErrorCode::ComposeInvalid, 3, 3, "`web` stands here twice");
    refused_at("a: 1\n---\nb: 2\n", ErrorCode::ComposeInvalid, 2, 1, "more than one YAML document");
    refused_at("services: !reset {}\n", ErrorCode::ComposeUnsupported, 1, 11, "YAML tag");
    refused_at("? [a]\n: b\n", ErrorCode::ComposeInvalid, 1, 3, "a key must be a single value");
    refused_at("a: &a [*a]\n", ErrorCode::ComposeInvalid, 1, 8, "never end");
    refused_at("a: *none\n", ErrorCode::ComposeInvalid, 1, 4, "no valid YAML");
    refused_at("<<: 5\n", ErrorCode::ComposeInvalid, 1, 5, "`<<` merges maps");
    refused_at("a: \"x\\0y\"\n", ErrorCode::ComposeInvalid, 1, 4, "NUL");
}

#[test]
fn secrets_and_configs_are_read_in_all_their_forms() {
    let text = r#"
name: shop
services:
  web:
    image: nginx:1
    secrets:
      - db
      - {source: tls, target: key.pem, uid: "101", gid: "0", mode: 0440}
      - {source: db, target: /etc/db, mode: "0o400"}
    configs:
      - nginx.conf
      - {source: motd, target: /etc/motd}
    x-flotilla:
      port: 8080
      environment:
        DB_PASSWORD: {secret: db}
        LEVEL: {config: level}
secrets:
  db:
  tls: {file: ./key.pem}
  token: {environment: TOKEN, name: ci-token}
configs:
  nginx.conf: {external: true, name: nginx-2}
  motd: {content: "ahoy $TAG"}
  level: {external: true}
"#;
    let composition = compose(text).unwrap();
    let file = |kind, name: &str, target: &str, owner: (Option<u32>, Option<u32>), mode| ValueUse {
        kind,
        name: name.parse().unwrap(),
        version: 0,
        given: Given::File { target: target.to_owned(), uid: owner.0, gid: owner.1, mode },
    };
    let variable = |kind, name: &str, variable: &str| ValueUse {
        kind,
        name: name.parse().unwrap(),
        version: 0,
        given: Given::Variable(variable.to_owned()),
    };
    let (secret, config) = (ValueKind::Secret, ValueKind::Config);
    assert_eq!(
        composition.services[0].values,
        [
            file(secret, "db", "/run/secrets/db", (None, None), 0o444),
            file(secret, "shop_tls", "/run/secrets/key.pem", (Some(101), Some(0)), 0o440),
            file(secret, "db", "/etc/db", (None, None), 0o400),
            file(config, "nginx-2", "/nginx.conf", (None, None), 0o444),
            file(config, "shop_motd", "/etc/motd", (None, None), 0o444),
            variable(secret, "db", "DB_PASSWORD"),
            variable(config, "level", "LEVEL"),
        ]
    );
    assert_eq!(composition.services[0].port, Some(8080));
    let brought: Vec<(&str, &str, &ValueSource)> =
        composition.values.iter().map(|it| (it.key.as_str(), it.name.as_str(), &it.source)).collect();
    assert_eq!(
        brought,
        [
            ("tls", "shop_tls", &ValueSource::File("./key.pem".to_owned())),
            ("token", "ci-token", &ValueSource::Environment("TOKEN".to_owned())),
            ("motd", "shop_motd", &ValueSource::Content("ahoy 1.27".to_owned())),
        ]
    );
}

#[test]
fn secrets_and_configs_that_make_no_sense_are_refused_at_their_line() {
    let of = |service: &str, top: &str| format!("services:\n  web:\n    image: x\n    {service}\n{top}\n");
    for (service, top, line, says) in [
        ("secrets: [db]", "", 4, "`services.web.secrets[0]` uses the secret `db`, which is not declared"),
        ("secrets: [db]", "configs: {db: }", 4, "add `db:` under the top-level `secrets`"),
        ("secrets: [db, db]", "secrets: {db: }", 3, "has two things at `/run/secrets/db`"),
        ("secrets: [{source: db, mode: 440}]", "secrets: {db: }", 4, "in octal, such as `0440`"),
        ("secrets: [{source: db, mode: '0999'}]", "secrets: {db: }", 4, "in octal"),
        ("secrets: [{source: db, uid: postgres}]", "secrets: {db: }", 4, "must be a number"),
        ("secrets: [{source: db, target: ../etc}]", "secrets: {db: }", 4, "absolute path of a file"),
        ("secrets: [{target: x}]", "secrets: {db: }", 4, "`source`"),
        ("configs: [{source: c, target: c}]", "configs: {c: }", 4, "absolute path of a file"),
        ("init: true", "secrets: {'a b': }", 5, "no name of a secret or config"),
        ("init: true", "secrets: {db: {file: x, external: true}}", 5, "twice where its value is"),
        ("init: true", "secrets: {db: {content: x}}", 5, "does not belong into a file"),
        (
            "init: true",
            "secrets: {a: {file: x, name: n}, b: {file: y, name: n}}",
            5,
            "gives `n` a value, and so does `a`",
        ),
        (
            "x-flotilla: {environment: {A: {secret: db, config: db}}}",
            "secrets: {db: }",
            4,
            "one of `secret` and `config`",
        ),
        ("x-flotilla: {environment: {A: db}}", "secrets: {db: }", 4, "one of `secret` and `config`"),
    ] {
        let error = compose(&of(service, top)).unwrap_err();
        assert_eq!(error.line, Some(line), "{service} {top}: {error:?}");
        assert!(error.message.contains(says), "{service} {top}: {error:?}");
    }
    let twice = "environment: {A: x}\n    x-flotilla: {environment: {A: {secret: db}}}";
    let error = compose(&of(twice, "secrets: {db: }")).unwrap_err();
    assert!(error.message.contains("sets the variable `A` twice"), "{error:?}");
}
