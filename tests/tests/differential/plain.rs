//! A service that nobody wrote a route for.

use weft_tests::backend::Troupe;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::differences::Outcome;
use super::objects::{self, NAMESPACE};
use super::pair::{Pair, Side};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_routes_everything_goes_to_the_service() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let troupe = Troupe::start(2)?;
    let services: Vec<String> = (0..2).map(|number| format!("s{number}")).collect();
    let objects: Vec<_> = std::iter::zip(&services, &troupe.backends)
        .flat_map(|(service, backend)| objects::service(service, &[backend.address]))
        .collect();
    let pair = Pair::start(binary, &objects, &services).await?;
    for (service, name) in services.iter().enumerate() {
        for h2 in [false, true] {
            for path in ["/", "/orders/42?deep=1&deep=2", "/a//b/../c;v=1/%7e%2F", "/q?"] {
                let mut ask = Ask::get(path, &format!("{name}.{NAMESPACE}")).header("x-twice", "one");
                ask = ask.header("x-twice", "two").header("cookie", "a=1").header("accept", "*/*");
                ask.h2 = h2;
                let envoy = Outcome::of(&pair.ask(Side::Envoy, service, &ask).await?);
                let weft = Outcome::of(&pair.ask(Side::Weft, service, &ask).await?);
                assert_eq!(envoy, weft, "{ask:?}");
                assert_eq!(weft.backend(), Some(troupe.backends[service].name.as_str()), "{ask:?}");
            }
        }
    }
    pair.stop().await
}
