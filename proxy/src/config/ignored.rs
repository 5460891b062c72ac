//! kube-proxy's flags that change nothing here: taken, so that a manifest needs no change, and named once.

use clap::Args;

macro_rules! ignored {
    ($($field:ident),* $(,)?) => {
        /// Flags of kube-proxy's whose job is not there, or is done in another way.
        #[derive(Args, Clone, Debug, Default)]
        #[allow(missing_docs, reason = "the names are kube-proxy's, which documents them")]
        pub struct Ignored {
            $(#[arg(long, hide = true, num_args = 0..=1, require_equals = false, default_missing_value = "true")]
            pub $field: Option<String>,)*
        }

        impl Ignored {
            /// Those that were given, with their dashes.
            pub(super) fn given(&self) -> Vec<String> {
                let mut given = Vec::new();
                $(if self.$field.is_some() {
                    given.push(format!("--{}", stringify!($field).replace('_', "-")));
                })*
                given
            }
        }
    };
}

ignored! {
    boot_id_file,
    cleanup_ipvs,
    config_sync_period,
    feature_gates,
    ipvs_exclude_cidrs,
    ipvs_min_sync_period,
    ipvs_scheduler,
    ipvs_strict_arp,
    ipvs_sync_period,
    ipvs_tcp_timeout,
    ipvs_tcpfin_timeout,
    ipvs_udp_timeout,
    kube_api_burst,
    kube_api_content_type,
    kube_api_qps,
    log_flush_frequency,
    log_json_info_buffer_size,
    log_json_split_stream,
    log_text_info_buffer_size,
    log_text_split_stream,
    machine_id_file,
    pod_cidr,
    profiling,
    proxy_port_range,
    show_hidden_metrics_for_version,
    vmodule,
}
