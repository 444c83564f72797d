// Package telemetry keeps who did what (the activity log), what runs measure (metrics, parameters, tags), and what was asked of endpoints
// (the request log).
//
// # What it owns
//
// The activity log of all services, run history, and the request log; each in a store of its own below internal. Nothing else reads or
// writes them.
//
// # Trust boundary
//
// Events come from the outboxes of the other services. A service writes its own events only: the name in an event is compared with
// the certificate at the other end, so what stole one service cannot write or overwrite what another one did. Within its own events a
// service is believed. Metrics come from runs, with run tokens, and from users; the chain has decided that they may. Which run a name
// means is asked of compute, and remembered: the id of a run is never used again in its workspace. Which endpoint a name means is asked
// of inference each time: a name that was given again shows nothing of the endpoint before. Requests come from inference's spools alone.
//
// # Invariants
//
//   - Each service's events are stored without gaps and once, in their order. A gap is refused until it is filled.
//   - A batch of metrics is answered when it is durable. A watch gives every point once.
//   - Events are sealed per subscription under this service's own seal, metrics under their workspace's key: when a workspace is
//     removed its metrics are unreadable at once, and its activity stays.
//   - Nothing is buffered without a bound: a watch of the activity that cannot keep up is ended, a watch of metrics reads from
//     the store.
//
// # How it fails
//
// Closed, and without loss: services keep their events until they are stored here, agents keep batches until they are answered. Without
// keyvault there are no metrics and no requests, without compute no metrics of runs that were not seen before, without inference no reading of
// requests; the activity log needs none of them.
package telemetry
