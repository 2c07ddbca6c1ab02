fn main() {
    flotilla_web::connector::run();
}
