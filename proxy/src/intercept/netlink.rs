//! The table as the kernel's messages.
//!
//! In: a [`Table`]. Out: bytes for one `send` on a netfilter netlink socket, one transaction each. Pure.
//! Invariant: the transaction makes the table, drops it with everything that an older run left in it, and makes
//! it anew, so its outcome does not depend on what was there.
//! Surprise: only the last message asks to be acknowledged. Errors are reported for any of them regardless, and one
//! acknowledgement per rule could overflow the receive buffer.

use std::net::IpAddr;

use netlink_bindings::nftables::{
    CmpOps, MetaKeys, Nfgenmsg, PayloadBase, PushChainAttrs, PushExprListAttrs, PushRuleAttrs, Registers,
    Request, VerdictCode,
};
use netlink_bindings::traits::{NetlinkRequest, Protocol, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use super::rules::{Chain, Cidr, Condition, Hook, PRIORITY, Rule, TABLE, Table, Verdict};

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`, `NLM_F_CREATE`, `NLM_F_APPEND`: see netlink(7).
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NFPROTO_INET`: IPv4 and IPv6 at once.
const FAMILY_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const SUBSYSTEM: u16 = 10;
/// `NF_ACCEPT` as a chain's policy.
const POLICY_ACCEPT: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: a redirect to a port, not only to an address.
const RANGE_PORT: u32 = 2;
/// `IFNAMSIZ`.
const INTERFACE_NAME: usize = 16;
/// `NFTNL_UDATA_TABLE_COMMENT`: the piece of user data that `nft list` shows as the table's comment.
const COMMENT: u8 = 0;

/// Register that conditions load into.
const SCRATCH: u32 = Registers::Reg1 as u32;

/// Position in a transaction at which the kernel found fault, named for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Begin,
    Table,
    Chain,
    Rule,
    End,
}

/// Messages for one `send`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// What the message with this sequence number does.
    pub(super) steps: Vec<Step>,
}

impl Batch {
    /// The transaction that makes the table what it should be.
    pub(super) fn program(table: &Table) -> Self {
        let mut batch = Self::default();
        batch.begin();
        batch.new_table(None);
        batch.delete_table(0);
        batch.new_table(Some(&table.comment()));
        for chain in &table.chains {
            batch.new_chain(chain);
        }
        let rules = table.rules();
        let pairs = table.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
        for (position, (chain, rule)) in pairs.enumerate() {
            batch.new_rule(chain, rule, if position + 1 == rules { ACK } else { 0 });
        }
        batch.end();
        batch
    }

    /// The transaction that removes the table; refused with `ENOENT` when there is none.
    pub(super) fn clean() -> Self {
        let mut batch = Self::default();
        batch.begin();
        batch.delete_table(ACK);
        batch.end();
        batch
    }

    /// The question for the table (not a transaction).
    pub(super) fn get_table() -> Self {
        let mut batch = Self::default();
        let mut request = Request::new().op_gettable_do(&header());
        request.encode().push_name_bytes(TABLE.as_bytes());
        batch.append(&request, ACK, Step::Table);
        batch
    }

    /// The question for all of the table's rules (not a transaction).
    pub(super) fn dump_rules() -> Self {
        let mut batch = Self::default();
        let mut request = Request::new().op_getrule_dump(&header());
        request.encode().push_table_bytes(TABLE.as_bytes());
        batch.append(&request, DUMP, Step::Rule);
        batch
    }

    fn begin(&mut self) {
        self.append(&Request::new().op_batch_begin_do(&batch_header()), 0, Step::Begin);
    }

    fn end(&mut self) {
        self.append(&Request::new().op_batch_end_do(&batch_header()), 0, Step::End);
    }

    fn new_table(&mut self, comment: Option<&str>) {
        let mut request = Request::new().op_newtable_do(&header());
        let attributes = request.encode().push_name_bytes(TABLE.as_bytes()).push_flags(0);
        match comment {
            Some(comment) => drop(attributes.push_userdata(&comment_data(comment))),
            None => drop(attributes),
        }
        self.append(&request, CREATE, Step::Table);
    }

    fn delete_table(&mut self, flags: u16) {
        let mut request = Request::new().op_deltable_do(&header());
        request.encode().push_name_bytes(TABLE.as_bytes());
        self.append(&request, flags, Step::Table);
    }

    fn new_chain(&mut self, chain: &Chain) {
        let mut request = Request::new().op_newchain_do(&header());
        let hook = match chain.hook {
            // NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT.
            Hook::Prerouting => 0,
            Hook::Output => 3,
        };
        let attributes: PushChainAttrs<&mut Vec<u8>> = request.encode();
        attributes
            .push_table_bytes(TABLE.as_bytes())
            .push_name_bytes(chain.name.as_bytes())
            .nested_hook()
            .push_num(hook)
            .push_priority(PRIORITY)
            .end_nested()
            .push_policy(POLICY_ACCEPT)
            .push_type(c"nat");
        self.append(&request, CREATE, Step::Chain);
    }

    fn new_rule(&mut self, chain: &Chain, rule: &Rule, flags: u16) {
        let mut request = Request::new().op_newrule_do(&header());
        let attributes: PushRuleAttrs<&mut Vec<u8>> = request.encode();
        let mut expressions = attributes
            .push_table_bytes(TABLE.as_bytes())
            .push_chain_bytes(chain.name.as_bytes())
            .nested_expressions();
        for condition in &rule.conditions {
            expressions = push_condition(expressions, condition);
        }
        drop(push_verdict(expressions, rule.verdict));
        self.append(&request, CREATE | APPEND | flags, Step::Rule);
    }

    /// Puts the netlink header before a request and adds it. Sequence numbers count from 0, so they index `steps`.
    fn append(&mut self, request: &impl NetlinkRequest, flags: u16, step: Step) {
        let Protocol::Raw { request_type, .. } = request.protocol() else {
            return; // Everything in nftables is raw.
        };
        let payload = request.payload();
        let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(request_type.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.steps.push(step);
    }
}

/// Size of `nlmsghdr`.
pub(super) const HEADER: usize = 16;

fn header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = FAMILY_INET;
    header
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

/// User data as nft writes it: type, length, text, NUL.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
    data.extend(comment.as_bytes());
    data.push(0);
    data
}

type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

fn push_condition<'a>(list: Expressions<'a>, condition: &Condition) -> Expressions<'a> {
    match condition {
        Condition::NotTcp => compare(meta(list, MetaKeys::L4Proto), CmpOps::Neq, &[IPPROTO_TCP]),
        Condition::Tcp => equal(meta(list, MetaKeys::L4Proto), &[IPPROTO_TCP]),
        Condition::Ipv6 => equal(meta(list, MetaKeys::Nfproto), &[NFPROTO_IPV6]),
        Condition::FromLoopback => equal(meta(list, MetaKeys::Iifname), &loopback_name()),
        Condition::ToLoopback => equal(meta(list, MetaKeys::Oifname), &loopback_name()),
        Condition::Port(port) => {
            let list = equal(meta(list, MetaKeys::L4Proto), &[IPPROTO_TCP]);
            // Bytes 2 and 3 of the TCP header.
            equal(payload(list, PayloadBase::TransportHeader, 2, 2), &port.to_be_bytes())
        }
        // Where source and destination stand in the IPv4 and the IPv6 header.
        Condition::Source(cidr) => push_address(list, *cidr, 12, 8),
        Condition::Destination(cidr) => push_address(list, *cidr, 16, 24),
        Condition::Uid(uid) => equal(meta(list, MetaKeys::Skuid), &uid.to_ne_bytes()),
        Condition::Mark(mark) => equal(meta(list, MetaKeys::Mark), &mark.to_ne_bytes()),
    }
}

fn push_address(list: Expressions<'_>, cidr: Cidr, v4: u32, v6: u32) -> Expressions<'_> {
    let (family, offset, address) = match cidr.address() {
        IpAddr::V4(address) => (NFPROTO_IPV4, v4, address.octets().to_vec()),
        IpAddr::V6(address) => (NFPROTO_IPV6, v6, address.octets().to_vec()),
    };
    let list = equal(meta(list, MetaKeys::Nfproto), &[family]);
    let length = if family == NFPROTO_IPV4 { 4 } else { 16 };
    let list = payload(list, PayloadBase::NetworkHeader, offset, length);
    let list = if cidr.is_host() { list } else { bitwise_and(list, &cidr.mask()) };
    debug_assert!(cidr.prefix() <= 128);
    equal(list, &address)
}

fn loopback_name() -> [u8; INTERFACE_NAME] {
    let mut name = [0; INTERFACE_NAME];
    name[..2].copy_from_slice(b"lo");
    name
}

fn meta(list: Expressions<'_>, key: MetaKeys) -> Expressions<'_> {
    list.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(SCRATCH).end_nested().end_nested()
}

fn payload(list: Expressions<'_>, base: PayloadBase, offset: u32, length: u32) -> Expressions<'_> {
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(SCRATCH)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn bitwise_and<'a>(list: Expressions<'a>, mask: &[u8]) -> Expressions<'a> {
    list.nested_elem()
        .nested_data_bitwise()
        .push_sreg(SCRATCH)
        .push_dreg(SCRATCH)
        .push_len(u32::try_from(mask.len()).unwrap_or(u32::MAX))
        .nested_mask()
        .push_value(mask)
        .end_nested()
        .nested_xor()
        .push_value(&vec![0; mask.len()])
        .end_nested()
        .end_nested()
        .end_nested()
}

fn equal<'a>(list: Expressions<'a>, value: &[u8]) -> Expressions<'a> {
    compare(list, CmpOps::Eq, value)
}

fn compare<'a>(list: Expressions<'a>, operator: CmpOps, value: &[u8]) -> Expressions<'a> {
    list.nested_elem()
        .nested_data_cmp()
        .push_sreg(SCRATCH)
        .push_op(operator as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn push_verdict(list: Expressions<'_>, verdict: Verdict) -> Expressions<'_> {
    match verdict {
        Verdict::Return => list
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(VerdictCode::Return as u32)
            .end_nested()
            .end_nested()
            .end_nested()
            .end_nested(),
        Verdict::Redirect(port) => {
            let list = list
                .nested_elem()
                .nested_data_counter()
                .push_bytes(0)
                .push_packets(0)
                .end_nested()
                .end_nested();
            let list = list
                .nested_elem()
                .nested_data_immediate()
                .push_dreg(SCRATCH)
                .nested_data()
                .push_value(&port.to_be_bytes())
                .end_nested()
                .end_nested()
                .end_nested();
            redirect(list)
        }
    }
}

/// The `redir` expression, which the bindings do not know: attributes of `enum nft_redir_attributes`.
fn redirect(list: Expressions<'_>) -> Expressions<'_> {
    const DATA: u16 = 2;
    const REG_PROTO_MIN: u16 = 1;
    const FLAGS: u16 = 3;
    let mut expression = list.nested_elem().push_name(c"redir");
    let buffer = expression.as_vec_mut();
    let data = push_nested_header(buffer, DATA);
    push_header(buffer, REG_PROTO_MIN, 4);
    buffer.extend(SCRATCH.to_be_bytes());
    push_header(buffer, FLAGS, 4);
    buffer.extend(RANGE_PORT.to_be_bytes());
    finalize_nested_header(buffer, data);
    expression.end_nested()
}

#[cfg(test)]
mod tests {
    use super::super::rules::tests::table;
    use super::*;

    #[test]
    fn a_transaction_is_whole_and_aligned() {
        let table = table("--exclude-cidr 10.0.0.0/9 --exclude-cidr fd00::/64 --exclude-mark 7");
        let batch = Batch::program(&table);
        assert_eq!(batch.steps.len(), 2 + 3 + 2 + table.rules());
        let mut position = 0;
        let mut acknowledged = vec![];
        for sequence in 0..batch.steps.len() {
            let word =
                |at: usize| u32::from_ne_bytes(batch.bytes[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(word(position + 8) as usize, sequence);
            if word(position + 4) >> 16 & u32::from(ACK) != 0 {
                acknowledged.push(batch.steps[sequence]);
            }
            position += (word(position) as usize).next_multiple_of(4);
        }
        assert_eq!(position, batch.bytes.len());
        assert_eq!(acknowledged, [Step::Rule], "exactly one answer is to be waited for");
    }
}
