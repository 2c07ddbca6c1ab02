fn main() {
    flotilla_web::dashboard::mount();
}
